"""What a health check says: findings, each with a level and a remedy.

A report that only lists facts leaves its reader with the work. So each fact is ``ok``,
worth a ``note``, or a ``problem``, and whatever is not ok says what to do.
"""

from dataclasses import dataclass
from pathlib import Path

import minillm


@dataclass(frozen=True)
class Finding:
    """One line of the report: how serious, what was found, what to do about it."""

    level: str
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """A finding that needs nothing."""
    return Finding("ok", text)


def note(text: str, remedy: str = "") -> Finding:
    """A finding worth knowing; the course works all the same."""
    return Finding("note", text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """A finding that stops the course or makes its results wrong."""
    return Finding("problem", text, remedy)


def report(findings: list[Finding]) -> str:
    """The findings as text, with a verdict as the last line.

    >>> print(report([ok("Python 3.12"), problem("no torch", "install it")]))
    minillm ...
    ok       Python 3.12
    problem  no torch
             -> install it
    verdict: 1 problem, 0 notes
    """
    lines = [f"minillm {minillm.__version__}"]
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.text}")
        lines += [f"{'':8} -> {finding.remedy}"] if finding.remedy else []
    levels = [finding.level for finding in findings]
    problems, notes = (count_of(levels, level) for level in ("problem", "note"))
    text = "\n".join([*lines, f"verdict: {problems}, {notes}"])
    return text.replace(str(Path.home()), "~")


def count_of(levels: list[str], level: str) -> str:
    """How often ``level`` occurs, in words.

    >>> count_of(["note", "ok"], "note"), count_of([], "problem")
    ('1 note', '0 problems')
    """
    count = levels.count(level)
    return f"{count} {level}" if count == 1 else f"{count} {level}s"
