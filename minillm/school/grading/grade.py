"""From a folder of submissions to a result for every student, whatever they hand in.

Each exercise gets a child process with the statements that it needs and no others, so
that what is wrong with one answer costs the others nothing. Results are written student
by student: whoever stops the grader half-way keeps the first half.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import minillm
from minillm.errors import require
from minillm.files import write_json
from minillm.school.checks import Exercise, Result, all_exercises, examine
from minillm.school.grading import overview
from minillm.school.grading.find import Found, find
from minillm.school.grading.handedin import SUFFIXES, HandedIn, read
from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.process import ProcessSubject
from minillm.school.grading.workshop import Limits, Workshop, isolation


@dataclass(frozen=True)
class Settings:
    """How a class is graded.

    Args:
        chapter: "01", or ``None`` for all.
        seed: of the numbers that answers are tried on.
        slow: replay experiments, too.
        limits: what an answer may use.
    """

    chapter: str | None = None
    seed: int = 0
    slow: bool = False
    limits: Limits = field(default_factory=Limits)


def grade(submissions: str | Path, out: str | Path, settings: Settings) -> list[dict]:
    """Grade a folder; write results.json for each student, grades.csv and report.txt.

    Args:
        submissions: a folder with a file or a folder for each student, or one file.
        out: folder for the report.
        settings: how.

    Returns:
        What each results.json holds.

    Raises:
        ValueError: nothing was handed in, or an unknown chapter.
    """
    exercises, out = all_exercises(settings.chapter), Path(out)
    graded = []
    with Workshop() as workshop:
        for student, files in handed_in(Path(submissions), out).items():
            result = grade_student(student, files, exercises, workshop, settings)
            write_json(out / "students" / student / "results.json", result, indent=1)
            print(f"{student}: {result['score']:g} of {result['points']:g}")
            graded.append(result)
    overview.write(out, graded, exercises)
    return graded


def handed_in(submissions: Path, out: Path | None = None) -> dict[str, list[Path]]:
    """Students and their files: ``ann.ipynb``, or all that a folder ``ann`` holds.

    Raises:
        ValueError: there is nothing.
    """
    remedy = "give a folder with a file or a folder for each student"
    require(submissions.exists(), "submissions", str(submissions), "a folder", remedy)
    whole = submissions.is_file()
    entries = [submissions] if whole else sorted(submissions.iterdir())
    students: dict[str, list[Path]] = {}
    for entry in entries:
        if entry.name.startswith(".") or entry == out:
            continue  # the last report may lie among the submissions
        if entry.is_dir():
            students.setdefault(entry.name, []).extend(_files_in(entry))
        elif entry.is_file():
            students.setdefault(entry.stem, []).append(entry)
    require(bool(students), "submissions", str(submissions), "not empty", remedy)
    return students


def _files_in(folder: Path) -> list[Path]:
    """Notebooks and scripts of a student; not the copies that Jupyter keeps."""
    inside = [f for f in folder.rglob("*") if f.suffix in SUFFIXES and f.is_file()]
    shown = [f.relative_to(folder).parts for f in inside]
    hidden = [any(part.startswith(".") for part in parts) for parts in shown]
    return sorted(f for f, h in zip(inside, hidden, strict=True) if not h)


def grade_student(
    student: str,
    files: list[Path],
    exercises: Iterable[Exercise],
    workshop: Workshop,
    settings: Settings,
) -> dict:
    """The content of a student's results.json; never an exception."""
    start = time.monotonic()
    results, notes = [], []
    try:
        work = read_all(files)
        notes += work.notes
        for result in answers(work, exercises, workshop, settings):
            results.append(result.to_json())
    except Exception as error:  # a fault of ours must not cost the class its grades
        notes.append(f"grading stopped: {type(error).__name__}: {error}")
    return {
        "student": student,
        "score": round(sum(result["score"] for result in results), 2),
        "points": sum(exercise.points for exercise in exercises),
        "isolation": isolation(),
        "course": minillm.__version__,
        "seed": settings.seed,
        "files": [file.name for file in files],
        "notes": notes,
        "seconds": round(time.monotonic() - start, 2),
        "exercises": results,
    }


def read_all(files: Iterable[Path]) -> HandedIn:
    """The statements of all files of a student; what cannot be read is noted."""
    statements, notes = [], []
    for file in files:
        try:
            work = read(file)
        except (ValueError, OSError) as error:
            notes.append(f"{file.name} could not be read: {error}")
            continue
        statements += work.statements
        notes += work.notes
    if not statements:
        notes.append("there is no Python to be graded")
    return HandedIn(tuple(statements), tuple(notes))


def answers(
    work: HandedIn,
    exercises: Iterable[Exercise],
    workshop: Workshop,
    settings: Settings,
) -> Iterator[Result]:
    """The result of each exercise, from a child process of its own."""
    for exercise in exercises:
        found = find(work.statements, exercise.names)
        subject = ProcessSubject(found.source, workshop, settings.limits)
        # what is not there needs no process
        asked = InProcess({}) if _absent(exercise, found) else subject
        notes = list(found.notes)
        try:
            result = examine(exercise, asked, settings.seed, settings.slow)
        finally:
            subject.close()
        if subject.printed.strip():
            notes.append(f"it printed: {' '.join(subject.printed.split())[:100]}")
        yield result.noting(notes)


def _absent(exercise: Exercise, found: Found) -> bool:
    return len(found.missing) == len(exercise.names)


def check_file(path: str | Path, settings: Settings) -> list[Result]:
    """The results of the exercises that a file answers, at least in part.

    Raises:
        ValueError: no file that can be read, or none of the exercises is in it.
    """
    work = read(Path(path))
    listed = all_exercises(settings.chapter)
    there = [e for e in listed if not _absent(e, find(work.statements, e.names))]
    known = ", ".join(name for e in listed for name in e.names)
    remedy = " ".join(work.notes) or "define at least one of them"
    require(
        bool(there), "file", Path(path).name, f"an answer to one of {known}", remedy
    )
    with Workshop() as workshop:
        return list(answers(work, there, workshop, settings))
