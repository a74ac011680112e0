"""From source to cells: what a notebook is, before it has been executed.

The source is a Python file in jupytext's percent format, which diffs, lints and can be
reviewed. What is made of it is a pure function of the file: the ids of the cells are a
hash of its name and their position, and metadata holds tags and nothing else.

A file in ``solutions/src`` becomes two notebooks. Exercises are what is left of it:

    # --- solution                 up to the line "# --- end of solution" is replaced by
    # --- solution: rank = None    raise NotImplementedError, or by what the line says
    tags=["solution"]              on a cell: it is left out
    tags=["answer-..."]            likewise; the question stands in the cell before
"""

import hashlib
import re
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minillm.errors import require

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
MAKE = {"code": new_code_cell, "markdown": new_markdown_cell}
STUB = 'raise NotImplementedError("your code")'
START = re.compile(r"^( *)# --- solution(?:: (.+))?$")
END = re.compile(r"^ *# --- end of solution$")


def notebook(path: str | Path) -> NotebookNode:
    """The notebook that a source file describes, without outputs."""
    return assemble(Path(path).read_text(encoding="utf-8"), Path(path).stem)


def exercises(path: str | Path) -> NotebookNode:
    """The same without solutions: what a student begins with.

    Raises:
        ValueError: a region that does not end, or ends without having begun.
    """
    return assemble(Path(path).read_text(encoding="utf-8"), Path(path).stem, True)


def assemble(source: str, stem: str, strip: bool = False) -> NotebookNode:
    """Make a notebook of a source, and with ``strip`` take the solutions out of it.

    >>> source = '# %% [markdown]\\n# # Why so?\\n\\n# %% tags=["sum"]\\n1 + 1'
    >>> made = assemble(source, "01_sums")
    >>> [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in made.cells]
    [('markdown', '# Why so?', {}), ('code', '1 + 1', {'tags': ['sum']})]
    """
    cells = []
    for read in jupytext.reads(source, fmt="py:percent").cells:
        tags = list(read.metadata.get("tags", ()))
        if strip and any(t == "solution" or t.startswith("answer-") for t in tags):
            continue
        text = without_solutions(read.source) if strip else read.source
        metadata = {"tags": tags} if tags else {}
        id_ = cell_id(stem, len(cells))
        cells.append(MAKE[read.cell_type](text, id=id_, metadata=metadata))
    return new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)


def cell_id(stem: str, position: int) -> str:
    """The id of a cell, always the same for its place.

    >>> cell_id("01_next_token", 0)
    '00-db9e9864'
    """
    digest = hashlib.sha256(f"{stem}/{position}".encode()).hexdigest()
    return f"{position:02}-{digest[:8]}"


def without_solutions(source: str) -> str:
    """Replace each marked region by a stub with the same indentation.

    Raises:
        ValueError: a region that does not end, or ends without having begun.

    >>> print(without_solutions('''def double(x):
    ...     # --- solution
    ...     return 2 * x
    ...     # --- end of solution'''))
    def double(x):
        raise NotImplementedError("your code")
    """
    kept, inside = [], False
    for line in source.split("\n"):
        start, end = START.match(line), END.match(line)
        if start or end:
            paired = bool(start) != inside
            need, remedy = "one of a pair", "begin and end each region once"
            require(paired, "marker", line.strip(), need, remedy)
            inside = bool(start)
        if start:
            kept.append(start[1] + (start[2] or STUB))
        elif not inside and not end:
            kept.append(line)
    need, remedy = "closed", "add the line '# --- end of solution'"
    require(not inside, "region", source[-60:], need, remedy)
    return "\n".join(kept)


def described(made: NotebookNode) -> dict:
    """All of a notebook but what its execution adds: to compare two of them."""
    cells = [
        (cell.get("id"), cell.cell_type, cell.source, dict(cell.metadata))
        for cell in made.cells
    ]
    version = (made.nbformat, made.nbformat_minor)
    return {"version": version, "metadata": made.metadata, "cells": cells}
