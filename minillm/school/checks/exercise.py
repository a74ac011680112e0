"""What an exercise is: a question, a check, plausible wrong answers, and hints.

Everything about it stands in one place, ``chNN.py`` or a part of it, ``chNN_*.py``.
The solution is the package's own function; a **mutant** is a function that makes one
classic mistake, named after it, with a sentence or two about it as its docstring. A
student whose results are those of a mutant is told them: write them to the student.

What an author writes::

    def batches(seed):                     # fixtures: name -> arguments
        return {"right padding": (logits, tokens, mask), ...}

    def no_shift(logits, tokens, mask):
        "Each position is asked for the token that it sees. Ask for the next one."
        return F.cross_entropy(logits[mask], tokens[mask])

    Exercise(
        id="01.next_token_loss", kind="I", points=3, level=1, minutes=15,
        task="The mean surprise over the tokens that are targets.",
        solution={"next_token_loss": next_token_loss},
        check=agrees("next_token_loss", batches, wrt=[0]),
        mutants={"next_token_loss": (no_shift, ...)},
        hints=("a question", "a direction", "nearly the line"),
    )
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from minillm.errors import require, require_one_of
from minillm.school.checks.tools import Check

KINDS = {"I": "implement", "D": "debug", "N": "derive", "X": "experiment"}


@dataclass(frozen=True, eq=False)  # one is only equal to itself
class Exercise:
    """One exercise.

    Args:
        id: chapter and name, "01.next_token_loss".
        kind: one of ``KINDS``.
        points: for the whole; its parts share them equally.
        level: 1 (warm up) to 3 (hard).
        minutes: that it should take.
        task: what is asked for, in a sentence or two.
        solution: a right answer: name that the answer must define -> function or class.
        check: see ``tools``.
        mutants: name -> wrong functions, each with its explanation as docstring.
        hints: three, from a question to nearly the line.
        start: for kind D, the broken functions that the student gets.
        params: for kind N, draws the numbers that the answer is a function of.

    Raises:
        ValueError: a field that does not fit.
    """

    id: str
    kind: str
    points: int
    level: int
    minutes: int
    task: str
    solution: Mapping[str, Callable]
    check: Check
    mutants: Mapping[str, tuple[Callable, ...]]
    hints: tuple[str, str, str]
    start: Mapping[str, Callable] = field(default_factory=lambda: MappingProxyType({}))
    params: Callable[[random.Random], dict] | None = None

    def __post_init__(self) -> None:
        require_one_of(KINDS, kind=self.kind)
        require(self.level in (1, 2, 3), "level", self.level, "1, 2 or 3", "choose one")
        three = len(self.hints) == 3
        require(three, "hints", len(self.hints), "three", "from a question to the line")
        strangers = (set(self.mutants) | set(self.start)) - set(self.solution)
        names = f"of {sorted(self.solution)}"
        remedy = "a mutant stands in for a function of the solution"
        require(not strangers, "mutants", sorted(strangers), names, remedy)
        for mutant in self.all_mutants:
            about = f"mutant {mutant.__name__}"
            said = mutant.__doc__
            require(bool(said), about, said, "explained", "give it a docstring")

    @property
    def names(self) -> tuple[str, ...]:
        """What the answer must define."""
        return tuple(self.solution)

    @property
    def all_mutants(self) -> tuple[Callable, ...]:
        """Every mutant, whatever it stands in for."""
        return tuple(mutant for group in self.mutants.values() for mutant in group)

    def mutated(self) -> dict[Callable, dict[str, Callable]]:
        """For each mutant, a full answer in which it replaces the right function."""
        return {
            mutant: {**self.solution, name: mutant}
            for name, group in self.mutants.items()
            for mutant in group
        }


def spoken(mutant: Callable) -> str:
    """A mutant's name as words.

    >>> def no_shift(): ...
    >>> spoken(no_shift)
    'no shift'
    """
    return mutant.__name__.strip("_").replace("_", " ")
