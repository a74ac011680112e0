"""One exercise, one answer: verdicts, points, and the name of the mistake.

When a part is wrong, the same check is put to every mutant, and the answers compared.
If the answers equal one mutant's on every fixture, and two fixtures or more show the
difference from the truth, then that mistake has a name. If several mutants fit, or
none does, no name is given: a wrong diagnosis costs a student more than none.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minillm.school.checks.compare import differs
from minillm.school.checks.exercise import Exercise, spoken
from minillm.school.checks.tools import Tools, Verdict
from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.subject import AnswerError, Subject


@dataclass(frozen=True)
class Mistake:
    """A mistake that is known: its name, and a sentence to whoever made it."""

    part: str
    name: str
    explanation: str


@dataclass(frozen=True)
class Result:
    """How an answer did.

    Args:
        exercise: what was asked.
        verdicts: of every fixture.
        mistakes: those that could be named, at most one for each part.
        replayed: false for an experiment that was only validated.
        notes: what was noticed on the way, for the student.
        seconds: by the clock.
    """

    exercise: Exercise
    verdicts: tuple[Verdict, ...]
    mistakes: tuple[Mistake, ...]
    replayed: bool = True
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """Points: a part counts if all its fixtures are right; parts count equally."""
        parts = {verdict.part for verdict in self.verdicts}
        wrong = {verdict.part for verdict in self.verdicts if verdict.wrong}
        share = len(parts - wrong) / len(parts) if parts else 0.0
        return round(self.exercise.points * share, 2)

    def noting(self, notes: Sequence[str]) -> "Result":
        """The same result with more notes."""
        return replace(self, notes=(*notes, *self.notes))

    def to_json(self) -> dict:
        """What a results file holds; the answers themselves stay out."""
        mistakes = [vars(mistake) for mistake in self.mistakes]
        verdicts = [
            {"part": v.part, "fixture": v.fixture, "ok": not v.wrong, "wrong": v.wrong}
            for v in self.verdicts
        ]
        return {
            "exercise": self.exercise.id,
            "score": self.score,
            "points": self.exercise.points,
            "mistakes": mistakes,
            "replayed": self.replayed,
            "hint": self.exercise.hints[0]
            if any(v.wrong for v in self.verdicts)
            else "",
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
            "verdicts": verdicts,
        }


def examine(
    exercise: Exercise, subject: Subject, seed: int = 0, slow: bool = False
) -> Result:
    """Put an exercise's check to an answer, and diagnose what is wrong."""
    start = time.monotonic()
    verdicts = _verdicts(exercise, subject, seed, slow)
    mistakes = _diagnose(exercise, verdicts, seed, slow)
    seconds = time.monotonic() - start
    replayed = exercise.kind != "X" or slow
    return Result(exercise, tuple(verdicts), mistakes, replayed, seconds=seconds)


def _verdicts(
    exercise: Exercise, subject: Subject, seed: int, slow: bool
) -> list[Verdict]:
    tools = Tools(exercise.solution, seed, slow)
    exercise.check(subject, tools)
    return tools.verdicts


def _diagnose(
    exercise: Exercise, verdicts: list[Verdict], seed: int, slow: bool
) -> tuple[Mistake, ...]:
    wrong = sorted({verdict.part for verdict in verdicts if verdict.wrong})
    if not wrong:
        return ()
    answers = _answers_of_mutants(exercise, seed, slow)
    needed = 1 if exercise.kind == "X" else 2  # an experiment is one configuration
    found = []
    for part in wrong:
        fits = [m for m in answers if _fits(part, verdicts, answers[m], needed)]
        if len(fits) == 1:
            about = " ".join(fits[0].__doc__.split())
            found.append(Mistake(part, spoken(fits[0]), about))
    return tuple(found)


@functools.lru_cache(maxsize=256)  # a class makes the same mistakes
def _answers_of_mutants(
    exercise: Exercise, seed: int, slow: bool
) -> dict[Callable, list[Verdict]]:
    return {
        mutant: _verdicts(exercise, InProcess(answer), seed, slow)
        for mutant, answer in exercise.mutated().items()
    }


def _fits(
    part: str, student: list[Verdict], mutant: list[Verdict], needed: int
) -> bool:
    """Whether a mutant answers as the student did, where it shows."""
    ours = {v.fixture: v for v in student if v.part == part}
    theirs = {v.fixture: v for v in mutant if v.part == part}
    shown = sum(1 for v in ours.values() if v.wrong)
    if shown < needed or set(ours) != set(theirs):
        return False
    return all(_alike(ours[f], theirs[f]) for f in ours)


def _alike(one: Verdict, other: Verdict) -> bool:
    failed = [isinstance(v.answer, AnswerError) for v in (one, other)]
    if any(failed):
        return all(failed) and one.answer.kind == other.answer.kind
    try:
        return not differs(one.answer, other.answer)
    except Exception:  # the answer's form is anybody's guess
        return False
