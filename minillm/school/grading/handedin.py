"""Notebooks and scripts as they are handed in, often damaged, read as Python.

Nothing is run here. A piece that does not parse costs its own functions and no other: a
cell of a notebook, or, within it, what stands between two definitions. Whatever was
left out is noted in a sentence to the student.
"""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import require

SUFFIXES = (".ipynb", ".py")
LARGEST = 20 * 2**20  # bytes; pictures make notebooks large, but not that large
KEPT_CELL_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # the rest is Python
MAGIC = re.compile(r"^(\s*)(?:[\w, ]+=\s*)?[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$")
DEFINITION = re.compile(r"(?:async def|def|class|import|from)\b|@")
STATEMENT = re.compile(r"(?!(?:else|elif|except|finally)\b)[A-Za-z_@]")


@dataclass(frozen=True)
class HandedIn:
    """The statements that a submission makes, in order, and what was left out.

    Args:
        statements: of all cells, top level only.
        notes: what could not be read, for the student.
    """

    statements: tuple[ast.stmt, ...]
    notes: tuple[str, ...]


def read(path: Path) -> HandedIn:
    """The statements of a notebook or a script.

    Raises:
        ValueError: neither of them, too large, or a notebook that is no JSON.
    """
    known = f"one of {', '.join(SUFFIXES)}"
    require(path.suffix in SUFFIXES, "file", path.name, known, "save it as a notebook")
    size = path.stat().st_size
    remedy = "clear the outputs and hand it in again"
    require(size <= LARGEST, "size", size, f"below {LARGEST} bytes", remedy)
    text = _decoded(path.read_bytes())
    cells = _cells(text, path.name) if path.suffix == ".ipynb" else [text]
    statements, notes = [], []
    for number, cell in enumerate(cells, 1):
        found, trouble = parse(cell)
        statements += found
        where = f"cell {number}" if len(cells) > 1 else path.name
        notes += [f"{where}, {said}" for said in trouble]
    return HandedIn(tuple(statements), tuple(notes))


def parse(source: str) -> tuple[list[ast.stmt], list[str]]:
    """Statements of a cell, and what does not parse in it.

    >>> found, trouble = parse("%matplotlib inline\\ndef f(): return 1\\ndef g(: 2")
    >>> [type(node).__name__ for node in found], trouble
    (['Pass', 'FunctionDef'], ['line 3 does not parse: invalid syntax'])
    """
    whole, _ = _tree(source)
    if whole is not None:
        return whole, []
    lines = _without_magics(source).split("\n")
    return _salvaged(lines, 0, (DEFINITION, STATEMENT))


def _salvaged(
    lines: list[str], before: int, cuts: Sequence[re.Pattern]
) -> tuple[list[ast.stmt], list[str]]:
    """What parses of some lines, whole or cut in ever smaller pieces."""
    whole, said = _tree("\n" * before + "\n".join(lines))
    if whole is not None:
        return whole, []
    if not cuts:
        return [], [said]
    found, trouble = [], []
    for start, stop in _pieces(lines, cuts[0]):
        part, more = _salvaged(lines[start:stop], before + start, cuts[1:])
        found += part
        trouble += more
    return found, trouble


def _tree(source: str) -> tuple[list[ast.stmt] | None, str]:
    """Statements, or ``None`` and why there are none."""
    try:
        return ast.parse(source).body, ""
    except SyntaxError as error:
        return None, f"line {error.lineno} does not parse: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return None, f"a part does not parse: {type(error).__name__}"


def _pieces(lines: list[str], cut: re.Pattern) -> list[tuple[int, int]]:
    """Where to cut a text that does not parse, decorators staying with their own."""
    starts, decorated = [0], False
    for number, line in enumerate(lines):
        begins = cut.match(line)
        if begins and number and not decorated:
            starts.append(number)
        decorated = bool(begins) and line.startswith("@")
    return list(zip(starts, [*starts[1:], len(lines)], strict=True))


def _without_magics(source: str) -> str:
    """The Python in a cell: its magics become ``pass``, other languages nothing."""
    lines = source.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(KEPT_CELL_MAGICS):
        return ""
    return "\n".join(
        re.match(r"\s*", line).group() + "pass" if MAGIC.match(line) else line
        for line in lines
    )


def _decoded(data: bytes) -> str:
    """Text of a file, whichever editor wrote it."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    text = data.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cells(text: str, name: str) -> list[str]:
    """Sources of the cells that hold code, or may; the other keys may be lost."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        notebook = None
    remedy = "open it in Jupyter, save it, and hand it in again"
    require(isinstance(notebook, dict), name, "damaged JSON", "a notebook", remedy)
    sheets = _list(notebook, "worksheets")  # notebooks of format 3
    groups = [notebook, *(sheet for sheet in sheets if isinstance(sheet, dict))]
    cells = [cell for group in groups for cell in _list(group, "cells")]
    return [_source(c) for c in cells if isinstance(c, dict) and _is_code(c)]


def _list(group: dict[str, Any], key: str) -> list:
    found = group.get(key)
    return found if isinstance(found, list) else []


def _is_code(cell: dict[str, Any]) -> bool:
    return cell.get("cell_type", "code") == "code"


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""
