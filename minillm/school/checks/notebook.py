"""What a student calls in a notebook: ``check``, ``hint`` and ``params``.

They print, return nothing, and say the same thing on every machine. Marks are the
grader's business; here it is about what is right, what is wrong, and what to try next.
"""

import textwrap
from collections.abc import Callable, Sequence

from minillm.errors import require
from minillm.school.checks.examine import Result, examine
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.lookup import exercise
from minillm.school.checks.tools import Verdict, all_params
from minillm.school.grading.inprocess import InProcess


def check(
    id: str, *answers: Callable, hint: int = 0, seed: int = 0, slow: bool = False
) -> None:
    """Print what is right and wrong about an answer.

    Args:
        id: of the exercise.
        answers: the functions that it asks for, in its order.
        hint: 1, 2 or 3 also prints that hint.
        seed: of the numbers that it is tried on.
        slow: replay an experiment, too.

    Raises:
        ValueError: an unknown exercise or hint, or not as many answers as it asks for.

    >>> check("01.perplexity", abs)
    Traceback (most recent call last):
    ValueError: answers must be perplexity, corpus_perplexity, bits_per_byte, got ...
    """
    asked = exercise(id)
    names = [getattr(answer, "__name__", repr(answer)) for answer in answers]
    remedy = f"call check({id!r}, {', '.join(asked.names)})"
    fits = len(answers) == len(asked.names) and all(map(callable, answers))
    require(fits, "answers", names, ", ".join(asked.names), remedy)
    _known_level(hint)
    subject = InProcess(dict(zip(asked.names, answers, strict=True)))
    print(told(examine(asked, subject, seed, slow), hint))


def hint(id: str, level: int = 1) -> None:
    """Print a hint: 1 is a question, 2 a direction, 3 nearly the line.

    >>> hint("01.emergence")
    Hint 1 of 3: A model gets 9 of 10 tokens right. How often does it get 30 right ...
    """
    require(level in (1, 2, 3), "level", level, "1, 2 or 3", "begin with 1")
    print(hint_text(exercise(id), level))


def params(id: str, seed: int = 0) -> dict:
    """The numbers that an exercise of kind N gives to the student with that seed.

    Raises:
        ValueError: an exercise that has none.

    >>> sorted(params("01.noisy_corpus", seed=12))
    ['noise', 'vocab_size']
    """
    asked = exercise(id)
    remedy = "call it without parameters"
    require(asked.params is not None, "exercise", id, "one to derive a number", remedy)
    return all_params(asked.params)(seed)["your numbers"][0]


def hint_text(asked: Exercise, level: int) -> str:
    """A hint of an exercise, as it is printed."""
    return f"Hint {level} of 3: {asked.hints[level - 1]}"


def told(result: Result, level: int = 0) -> str:
    """A result as a student reads it: no points, no times, one next step."""
    asked, wrong = result.exercise, [v for v in result.verdicts if v.wrong]
    n = len(result.verdicts)
    lines = [f"note: {note}" for note in result.notes]
    if not (wrong or result.replayed):
        lines.append("note: valid, but not replayed; slow=True (--slow) does that")
    right = [_where(v, asked) for v in result.verdicts if not v.wrong]
    if wrong and right:
        lines.append(f"right: {'; '.join(right)}")
    lines += _complaints(wrong, asked)
    for mistake in result.mistakes:
        lines.append(f"This looks like: {mistake.name}. {mistake.explanation}")
    if wrong and level:
        lines.append(f"{hint_text(asked, level)}")
    if wrong and level < 3:
        lines.append(f"Next: hint({asked.id!r}, {level + 1})")
    first = f"{asked.id}: {n - len(wrong)} of {n} right"
    return "\n".join([first, *(_wrapped(line) for line in lines)])


def _wrapped(line: str) -> str:
    """A line as a paragraph that fits a notebook's page."""
    return textwrap.fill(line, 88, initial_indent="  ", subsequent_indent="    ")


def _complaints(wrong: Sequence[Verdict], asked: Exercise) -> list[str]:
    """One line for each thing that is wrong, however many fixtures show it."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in wrong:
        kind = "off" if verdict.wrong.startswith("is off by") else verdict.wrong
        groups.setdefault(kind, []).append(verdict)
    lines = []
    for group in groups.values():
        at, more = "; ".join(_where(v, asked) for v in group[:3]), len(group) - 3
        at += f"; and {more} more" if more > 0 else ""
        lines.append(f"wrong: {at}: the answer {group[0].wrong}")
    return lines


def _where(verdict: Verdict, asked: Exercise) -> str:
    several = len(asked.names) > 1
    return f"{verdict.part}, {verdict.fixture}" if several else verdict.fixture


def _known_level(level: int) -> None:
    require(level in (0, 1, 2, 3), "hint", level, "in 0..3", "begin with 1")
