"""What the instructor reads: a table for the LMS, and a page about the class."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from minillm.files import atomic_write
from minillm.school.checks import Exercise


def write(out: Path, graded: Sequence[dict], exercises: Sequence[Exercise]) -> None:
    """Write grades.csv and report.txt."""
    with (
        atomic_write(out / "grades.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(table(graded, exercises))
    with atomic_write(out / "report.txt") as path:
        path.write_text(page(graded, exercises), encoding="utf-8")


def table(graded: Sequence[dict], exercises: Sequence[Exercise]) -> list[list]:
    """A row for each student, a column for each exercise."""
    rows: list[list] = [["student", *(e.id for e in exercises), "total"]]
    for student in graded:
        scores = {r["exercise"]: r["score"] for r in student["exercises"]}
        cells = [scores.get(e.id, 0.0) for e in exercises]
        rows.append([_harmless(student["student"]), *cells, student["score"]])
    return rows


def _harmless(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def page(graded: Sequence[dict], exercises: Sequence[Exercise]) -> str:
    """The class on one page."""
    totals = [student["score"] for student in graded]
    points, seconds = graded[0]["points"], sum(s["seconds"] for s in graded)
    lines = [
        f"{len(graded)} submissions, {points} points, {seconds:.0f} seconds",
        f"mean {mean(totals):.1f}, median {median(totals):.1f}",
        f"isolation: {graded[0]['isolation']}",
    ]
    sections = {
        "Exercises": [_exercise_line(e, graded) for e in exercises],
        "Mistakes": _mistakes(graded),
        "To look at": _troubles(graded),
    }
    for title, content in sections.items():
        lines += ["", title, *(f"  {line}" for line in content or ["none"])]
    return "\n".join(lines) + "\n"


def _exercise_line(exercise: Exercise, graded: Sequence[dict]) -> str:
    results = [
        r for s in graded for r in s["exercises"] if r["exercise"] == exercise.id
    ]
    scores = [r["score"] for r in results] or [0.0]
    full = sum(score >= exercise.points for score in scores)
    of = f"{mean(scores):.1f} of {exercise.points} points"
    return f"{exercise.id:<24} {of:<18} full marks {full} of {len(graded)}"


def _mistakes(graded: Sequence[dict]) -> list[str]:
    """How many students made which mistake, the most frequent first."""
    counts = Counter(
        (result["exercise"], mistake["name"])
        for student in graded
        for result in student["exercises"]
        for mistake in result["mistakes"]
    )
    return [f"{n:>4}  {id}: {name}" for (id, name), n in counts.most_common()]


def _troubles(graded: Sequence[dict]) -> list[str]:
    """What was odd about a submission, and could deserve a look."""
    lines = []
    for student in graded:
        about = list(student["notes"])
        for result in student["exercises"]:
            about += [f"{result['exercise']}: {note}" for note in result["notes"]]
        lines += [f"{student['student']}: {note}" for note in about]
    return lines
