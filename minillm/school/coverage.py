"""What a chapter promised and where it is kept: topic to cell, exercise and answer.

``notebooks/coverage/NN.toml`` lists for each chapter

    [[topic]]      something that has to be taught, and what it needs:
                   code in the package, an experiment, an exercise, an answer, prose
    [[question]]   an interview question that has to be answered
    claims = []    ids of claims of other chapters that it puts to the test, too
    finished = true

and names the place of each: a function of the package, the tag of a cell in the
notebook, the id of an exercise, the tag of an answer in the solutions. ``missing``
looks whether all of these exist, and whether every claim that is declared for the
chapter is put to the test. One place may serve several topics. Tests hold a chapter to
its table once it says that it is finished.

    python -m minillm.school.coverage          what does each chapter still lack?
    python -m minillm.school.coverage 01       what does chapter 01 still lack?
"""

import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import jupytext

from minillm.errors import require, require_file

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path("notebooks", "coverage")
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
    promised = table(chapter, root)
    there = existing(chapter, root)
    lacks = []
    for row in [*promised.get("topic", ()), *promised.get("question", ())]:
        lacks += _lacks(row, there)
    declared = [it.id for it in _defined("claims", chapter, "CLAIMS")]
    for id_ in dict.fromkeys([*declared, *promised.get("claims", ())]):
        if id_ not in there["claims"]:
            lacks.append(f"claim {id_} is nowhere put to the test")
    return lacks


def table(chapter: str, root: Path = ROOT) -> dict:
    """What a chapter promised.

    Raises:
        FileNotFoundError: it has no table.
    """
    path = root / TABLES / f"{chapter}.toml"
    require_file(path, "write down what the chapter has to teach")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def chapters(root: Path = ROOT) -> list[str]:
    """The chapters that have a table or a notebook, in order."""
    tables = (path.stem for path in (root / TABLES).glob("[0-9]*.toml"))
    sources = (path.name[:2] for path in (root / "notebooks/src").glob("[0-9]*.py"))
    return sorted({*tables, *sources})


def existing(chapter: str, root: Path = ROOT) -> dict[str, set[str]]:
    """All places of a chapter that a table may name."""
    notebook = _cells(chapter, root, "notebooks")
    solutions = _cells(chapter, root, "solutions")
    code = "\n".join(c.source for c in notebook + solutions if c.cell_type == "code")
    return {
        "cells": _tags(notebook),
        "answers": {tag for tag in _tags(solutions) if tag.startswith("answer-")},
        "exercises": {it.id for it in _defined("checks", chapter, "EXERCISES")},
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
    what = f"{row['id']} ({row['title']})"
    lacks = [] if row["needs"] else [f"{what}: it needs nothing"]
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


def _defined(where: str, chapter: str, name: str) -> tuple:
    """What ``minillm.school.checks`` or ``.claims`` define for a chapter."""
    module = f"minillm.school.{where}.ch{chapter}"
    try:
        if importlib.util.find_spec(module) is None:
            return ()
    except ModuleNotFoundError:  # there is not even the folder
        return ()
    return tuple(getattr(importlib.import_module(module), name))


def main(wanted: list[str]) -> None:
    """Print what chapters lack."""
    for chapter in wanted or chapters():
        lacks = missing(chapter)
        state = "finished" if table(chapter).get("finished") else "not finished"
        print(f"Chapter {chapter}, {state}: {len(lacks)} things are missing.")
        print("".join(f"    {line}\n" for line in lacks), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
