"""From an id to its exercise: ``01.next_token_loss`` stands in ``ch01``."""

import difflib
import importlib
import re
from pathlib import Path

from minillm.errors import require
from minillm.school.checks.exercise import Exercise

HERE = Path(__file__).parent


def chapters() -> list[str]:
    """Numbers of the chapters that have exercises.

    >>> chapters()[0]
    '01'
    """
    return sorted(file.stem.removeprefix("ch") for file in HERE.glob("ch[0-9][0-9].py"))


def all_exercises(chapter: str | None = None) -> tuple[Exercise, ...]:
    """The exercises of a chapter, or of all.

    Raises:
        ValueError: a chapter without exercises.

    >>> all_exercises("01")[0].id
    '01.next_token_loss'
    """
    known = chapters()
    named = f"one of {known}"
    require(chapter in [None, *known], "chapter", chapter, named, "choose one of them")
    found: tuple[Exercise, ...] = ()
    for number in [chapter] if chapter else known:
        found += importlib.import_module(f"{__package__}.ch{number}").EXERCISES
    return found


def exercise(id: str) -> Exercise:
    """The exercise of an id.

    Raises:
        ValueError: there is none; names those that are spelt alike.

    >>> exercise("01.span_corruption").kind
    'I'
    >>> exercise("01.next_token_los")
    Traceback (most recent call last):
    ValueError: exercise must be a known id, got '01.next_token_los'; did you mean ...
    """
    chapter = re.match(r"\d\d", str(id))
    known = chapter and chapter.group() in chapters()
    listed = {e.id: e for e in all_exercises(chapter.group() if known else None)}
    close = difflib.get_close_matches(str(id), listed, 3, 0.4) or list(listed)[:3]
    meant = f"did you mean {' or '.join(close)}?"
    require(id in listed, "exercise", id, "a known id", meant)
    return listed[id]
