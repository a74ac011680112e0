"""How a check compares an answer with the truth, one fixture at a time.

A check is a function ``check(subject, tools)``. It says what to ask, as a **probe**: a
function from a subject to whatever it answers. ``tools.same`` puts the probe to the
answer and to the solution and compares. That an answer raises, hangs or returns
nonsense concerns that fixture only. The expected values stay here.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.school.checks.compare import differs
from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.subject import AnswerError, Subject

Probe = Callable[[Subject], Any]
Fixtures = Callable[[int], Mapping[str, Sequence]]


@dataclass(frozen=True)
class Verdict:
    """What one fixture said.

    Args:
        part: what was asked; the verdicts of a part are worth something only together.
        fixture: on what it was tried.
        wrong: what is wrong, to be read after "The answer"; empty if it is right.
        answer: what was answered, to be compared with the mutants.
    """

    part: str
    fixture: str
    wrong: str
    answer: Any = None


class Tools:
    """Collects verdicts.

    Args:
        solution: the right answer, by name.
        seed: of the fixtures.
        slow: whether experiments are replayed.
    """

    def __init__(
        self, solution: Mapping[str, Callable], seed: int = 0, slow: bool = False
    ):
        self.reference = InProcess(solution)
        self.seed, self.slow = seed, slow
        self.verdicts: list[Verdict] = []

    def same(
        self,
        subject: Subject,
        part: str,
        fixture: str,
        probe: Probe,
        rtol: float = 1e-4,
    ) -> None:
        """The answer must give what the solution gives, to ``rtol`` of its scale."""
        expected = probe(self.reference)
        self.holds(subject, part, fixture, probe, lambda a: differs(a, expected, rtol))

    def holds(
        self,
        subject: Subject,
        part: str,
        fixture: str,
        probe: Probe,
        complaint: Callable[[Any], str],
    ) -> None:
        """The answer must satisfy a condition; ``complaint`` says what is wrong."""
        answer = ask(probe, subject)
        if isinstance(answer, AnswerError):
            wrong = answer.sentence
        else:
            try:
                wrong = complaint(answer)
            except Exception:  # the answer's form is anybody's guess
                wrong = "returned something of another form than was asked for"
        self.verdicts.append(Verdict(part, fixture, wrong, answer))


Check = Callable[[Subject, Tools], None]


def ask(probe: Probe, subject: Subject) -> Any:
    """What a subject answers to a probe, or the ``AnswerError`` that it ends in."""
    try:
        return probe(subject)
    except AnswerError as error:
        return error
    except Exception:  # the probe could not go on with what it was given
        sentence = "returned something with which the next step could not go on"
        return AnswerError("form", sentence)


def agrees(
    name: str, fixtures: Fixtures, wrt: Sequence[int] = (), rtol: float = 1e-4
) -> Check:
    """The check of most functions: values, and gradients, equal the solution's.

    Args:
        name: the function.
        fixtures: seed -> name of the fixture -> arguments.
        wrt: places of the arguments whose gradients are compared, too.
        rtol: relative tolerance; 0 for whole numbers.
    """

    def check(subject: Subject, tools: Tools) -> None:
        for fixture, args in fixtures(tools.seed).items():
            tools.same(subject, name, fixture, lambda s, a=args: s.call(name, *a), rtol)
            if wrt:
                tools.same(
                    subject,
                    name,
                    f"{fixture}, gradient",
                    lambda s, a=args: s.grad(name, a, wrt),
                    rtol,
                )

    return check


def all_of(*checks: Check) -> Check:
    """One check after the other."""

    def check(subject: Subject, tools: Tools) -> None:
        for one in checks:
            one(subject, tools)

    return check


def all_params(draw: Callable[[random.Random], dict]) -> Fixtures:
    """Fixtures of an exercise of kind N: a student's own numbers, and others.

    >>> list(all_params(lambda rng: {"n": rng.randint(1, 6)})(seed=7))
    ['your numbers', 'other numbers', 'yet other numbers']
    """

    def fixtures(seed: int) -> dict:
        names = "your numbers", "other numbers", "yet other numbers"
        return {n: (draw(random.Random(f"{n} {seed}")),) for n in names}

    return fixtures
