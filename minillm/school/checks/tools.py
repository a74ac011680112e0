"""How a check compares an answer with the truth, one fixture at a time.

A check is a function ``check(subject, tools)``. It says what to ask, as a **probe**: a
function from a subject to whatever it answers. ``tools.same`` puts the probe to the
answer and to the solution and compares. That an answer raises, hangs or returns nonsense
concerns that fixture only. The expected values stay here.

What is compared, and what is not: numbers to a relative 1e-4 of their scale (float32 is
as good as float64), shapes exactly, a list as a tensor of the same numbers. Tolerances
are relative to the largest expected number, since an entry that cancels to nearly zero
has no correct digits of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
    """

    def __init__(self, solution: Mapping[str, Callable], seed: int = 0):
        self.reference = InProcess(solution)
        self.seed = seed
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
        """The answer must satisfy a condition; ``complaint`` says what is wrong, or ""."""
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


def differs(answer: Any, expected: Any, rtol: float = 1e-4) -> str:
    """In what an answer differs from what was expected; "" if in nothing.

    >>> differs([1, 2], torch.tensor([1, 2]))
    ''
    >>> differs(torch.ones(3), torch.tensor(1.0))
    'returned shape (3,) where () is right'
    >>> differs(1.1, 1.0)
    'is off by 1e-01 of the right size'
    """
    if answer is None and expected is not None:
        return "returned None; is a `return` missing?"
    numbers, right = as_numbers(answer), as_numbers(expected)
    if right is not None:
        return _numbers_differ(numbers, right, rtol)
    if isinstance(expected, list | tuple):
        if not isinstance(answer, list | tuple) or len(answer) != len(expected):
            return f"returned {_form(answer)} where {_form(expected)} is right"
        pairs = zip(answer, expected, strict=True)
        return next(filter(None, (differs(a, e, rtol) for a, e in pairs)), "")
    if isinstance(expected, dict):
        if not isinstance(answer, dict) or set(answer) != set(expected):
            return f"returned {_form(answer)} where {_form(expected)} is right"
        return differs([answer[k] for k in expected], list(expected.values()), rtol)
    same = type(answer) is type(expected) and answer == expected
    return "" if same else f"returned {_form(answer)}, which is not what is right"


def as_numbers(value: Any) -> torch.Tensor | None:
    """A tensor, number, or list of numbers as float64; ``None`` for anything else.

    >>> as_numbers([True, 2])
    tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(value, torch.Tensor):
        return value.double()
    flat = value if isinstance(value, list | tuple) else [value]
    if not flat or not all(isinstance(item, bool | int | float) for item in flat):
        return None
    return torch.tensor(value, dtype=torch.float64)


def _numbers_differ(
    answer: torch.Tensor | None, right: torch.Tensor, rtol: float
) -> str:
    if answer is None:
        return "returned something else than numbers"
    if answer.shape != right.shape:
        shapes = tuple(answer.shape), tuple(right.shape)
        return f"returned shape {shapes[0]} where {shapes[1]} is right"
    odd = ~answer.isfinite()
    if (odd & right.isfinite()).any():
        return f"returned NaN or infinity in {int(odd.sum())} of {odd.numel()} places"
    if torch.allclose(answer, right, rtol=0, atol=0, equal_nan=True):
        return ""
    scale = right[right.isfinite()].abs().max() if right.isfinite().any() else 1.0
    off = float((answer - right).abs().max() / (scale or 1.0))
    return "" if off <= rtol else f"is off by {off:.0e} of the right size"


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
