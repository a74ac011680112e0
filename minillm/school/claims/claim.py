"""A claim, its verdict, and how both are printed.

There are five verdicts. Two come from a measurement: it *holds* or is *refuted*. It
*depends* if it is true of some cases and false of others. And two say that no code of
ours can decide: *unsourced* (no source for it was found, which does not make it false)
and *documented* (decided by reading a source, which is named).
"""

import importlib
import math
import pkgutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from minillm.errors import require, require_one_of

VERDICTS = ("holds", "refuted", "depends", "unsourced", "documented")
READ = ("unsourced", "documented")  # without a measurement
GUIDE = "an interview guide"
WIDTH = 88


@dataclass(frozen=True)
class Claim:
    """Something that is often said.

    Args:
        id: a letter and a number.
        sentence: what is said, in our words.
        predicate: measured value -> whether it holds, or the verdict itself; or, where
            no measurement can decide, just the verdict.
        why: what is right instead, in a sentence or two, with the source.
        source: who says it.
        digits: to which the value is printed; machines agree on two of a measurement.

    Raises:
        ValueError: a verdict that there is not.

    >>> large = Claim("X1", "Two is large.", lambda value: value > 10, "It is small.")
    >>> large.verdict(2)
    'refuted'
    """

    id: str
    sentence: str
    predicate: Callable[[Any], bool | str] | str
    why: str
    source: str = GUIDE
    digits: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.predicate, str):
            require_one_of(READ, predicate=self.predicate)

    def verdict(self, value: Any = None) -> str:
        """What a measured value decides.

        Raises:
            ValueError: a value where none decides, or none where one does.
        """
        if isinstance(self.predicate, str):
            require(value is None, "value", value, "None", f"{self.id} is read")
            return self.predicate
        need, remedy = "what was measured", "measure it in the cell before"
        require(value is not None, "value", value, need, remedy)
        found = self.predicate(value)
        verdict = found if isinstance(found, str) else VERDICTS[0 if found else 1]
        require_one_of(VERDICTS, verdict=verdict)
        return verdict


def claim(id: str, value: Any = None) -> None:
    """Print a claim, what was measured, and the verdict.

    Args:
        id: of a claim in ``minillm.school.claims``.
        value: what was measured; nothing for a claim that is decided by reading.

    Raises:
        ValueError: no such claim; a value that does not belong to it.

    >>> claim("A1", 10.82)
    Claim A1, from an interview guide:
        Before training, the loss of a language model is typically between 2 and 4.
    Measured: 11. Verdict: refuted.
        At the start all V tokens are about equally likely, so the loss is about ...
    """
    it = find(id)
    verdict = it.verdict(value)
    print(f"Claim {it.id}, from {it.source}:")
    print(_indented(it.sentence))
    measured = "" if value is None else f"Measured: {rounded(value, it.digits)}. "
    print(f"{measured}Verdict: {verdict}.")
    print(_indented(it.why))


def find(id: str) -> Claim:
    """The claim of that id.

    Raises:
        ValueError: there is none.
    """
    known = all_claims()
    remedy = "see minillm/school/claims"
    require(id in known, "id", id, f"one of {', '.join(known)}", remedy)
    return known[id]


@cache
def all_claims() -> dict[str, Claim]:
    """Every claim by its id, chapter by chapter.

    Raises:
        ValueError: two claims of one id.
    """
    package = importlib.import_module("minillm.school.claims")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    chapters = [name for name in names if name.startswith("ch")]
    found = [it for name in chapters for it in chapter_claims(name)]
    return by_id(found)


def by_id(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Claims by their ids, of which no two may be the same."""
    found: dict[str, Claim] = {}
    for it in claims:
        require(it.id not in found, "id", it.id, "unique", "take another number")
        found[it.id] = it
    return found


def chapter_claims(module: str) -> tuple[Claim, ...]:
    """The claims of one chapter, for instance of ``"ch01"``."""
    return importlib.import_module(f"minillm.school.claims.{module}").CLAIMS


def rounded(value: Any, digits: int = 2) -> str:
    """Write a value so that it is the same on every machine.

    Whole numbers are exact. Others get two significant digits: a change in the last bit
    of one weight moves a loss in the middle of training in its third.

    >>> rounded(1234567), rounded(0.01849), rounded(10.82), rounded(True), rounded(8.0)
    ('1,234,567', '0.018', '11', 'yes', '8.0')
    >>> rounded((0.25, 0.5)), rounded(161_000.0), rounded("a cat")
    ('0.25 and 0.50', '160,000', 'a cat')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " and ".join(rounded(part, digits) for part in value)
    if isinstance(value, str | int):
        return f"{value:,}" if isinstance(value, int) else value
    if value == 0 or not math.isfinite(value):
        return str(float(value))
    places = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{round(float(value), places):,.{max(places, 0)}f}"


def _indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
