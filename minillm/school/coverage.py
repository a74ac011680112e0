"""What a chapter promised and where it is kept: topic to cell, exercise and answer.

``notebooks/coverage/NN.toml`` lists for each chapter

    [[topic]]      something that has to be taught, and what it needs:
                   code in the package, an experiment, an exercise, an answer, prose
    [[question]]   an interview question that has to be answered
    claims = []    ids of claims that have to be put to the test

and names the place of each: a function of the package, the tag of a cell in the
notebook, the id of an exercise, the tag of an answer in the solutions. ``missing``
looks whether all of these exist. One place may serve several topics.

    python -m minillm.school.coverage 01       what does chapter 01 still lack?
"""

import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import jupytext

from minillm.errors import require

ROOT = Path(__file__).resolve().parents[2]
PLACES = {  # what a topic may need -> the field that says where it is
    "code": "code",
    "experiment": "cells",
    "prose": "cells",
    "exercise": "exercises",
    "answer": "answers",
}
CLAIM = re.compile(r"""\bclaim\(\s*["'](\w+)["']""")


def missing(chapter: str, root: Path = ROOT) -> list[str]:
    """What a chapter lacks, one line each.

    Raises:
        FileNotFoundError: it has no table.
        ValueError: a topic needs something that there is no word for.
    """
    path = root / "notebooks" / "coverage" / f"{chapter}.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    there = existing(chapter, root)
    lacks = []
    for row in [*table.get("topic", ()), *table.get("question", ())]:
        lacks += _lacks(row, there)
    for id_ in table.get("claims", ()):
        if id_ not in there["claims"]:
            lacks.append(f"claim {id_} is nowhere put to the test")
    return lacks


def existing(chapter: str, root: Path = ROOT) -> dict[str, set[str]]:
    """All places of a chapter that a table may name."""
    notebook, solutions = (
        _cells(chapter, root, "notebooks"),
        _cells(chapter, root, "solutions"),
    )
    code = "\n".join(c.source for c in notebook + solutions if c.cell_type == "code")
    return {
        "cells": _tags(notebook),
        "answers": {tag for tag in _tags(solutions) if tag.startswith("answer-")},
        "exercises": _exercises(chapter),
        "claims": set(CLAIM.findall(code)),
    }


def has_name(path: str) -> bool:
    """Whether the package has a name, given as ``module:name``.

    >>> has_name("minillm.training:next_token_loss"), has_name("minillm.training:magic")
    (True, False)
    """
    module, _, name = path.partition(":")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _lacks(row: dict, there: dict[str, set[str]]) -> list[str]:
    lacks, what = [], f"{row['id']} ({row['title']})"
    for need in row["needs"]:
        require(need in PLACES, "needs", need, f"one of {tuple(PLACES)}", "correct it")
        field = PLACES[need]
        if not row.get(field):
            lacks.append(f"{what}: no {need} is named")
        for name in row.get(field, ()):
            fine = has_name(name) if field == "code" else name in there[field]
            if not fine:
                lacks.append(f"{what}: there is no {need} {name!r}")
    return lacks


def _cells(chapter: str, root: Path, folder: str) -> list:
    files = sorted((root / folder / "src").glob(f"{chapter}_*.py"))
    return [c for f in files for c in jupytext.read(f, fmt="py:percent").cells]


def _tags(cells: list) -> set[str]:
    return {tag for cell in cells for tag in cell.metadata.get("tags", ())}


def _exercises(chapter: str) -> set[str]:
    """Ids of a chapter's exercises, as ``minillm.school.checks`` defines them."""
    name = f"minillm.school.checks.ch{chapter}"
    try:
        if importlib.util.find_spec(name) is None:
            return set()
    except ModuleNotFoundError:  # there are no checks at all yet
        return set()
    return {exercise.id for exercise in importlib.import_module(name).EXERCISES}


def main(chapters: list[str]) -> None:
    """Print what chapters lack."""
    for chapter in chapters:
        lacks = missing(chapter)
        print("\n".join(lacks) or f"Chapter {chapter} lacks nothing.")


if __name__ == "__main__":
    main(sys.argv[1:])
