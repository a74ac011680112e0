"""A short key for the code that a result depends on.

A result that took minutes is kept in a file, and the file must say whether it still
speaks of the code as it is. So it carries a hash of every module of ``minillm`` that
the recipe imports, directly or through others. Comments, docstrings and blank lines are
left out, as they change nothing; everything else changes the key.

The key is the same on every system and every Python. So modules go by the names that
their folders list (a Mac or Windows says that ``model/GPT.py`` exists), and source is
taken line by line, as written: trees and tokens differ from one Python to the next.
"""

import ast
import hashlib
import io
import os
import tokenize
from pathlib import Path

import torch

from minillm.school.lines import docstring_lines

PACKAGE = Path(__file__).resolve().parents[1]

# They keep results and decide none, so results do not grow old with them.
KEEPERS = ("code_key", "findings", "lines", "machine", "studies")


def code_key(path: str | Path) -> str:
    """Twelve hexadecimal digits for a recipe, all behind it, and torch's version.

    >>> len(code_key(PACKAGE / "files.py"))
    12
    """
    digest = hashlib.sha256(torch.__version__.split("+")[0].encode())
    recipe = Path(path).resolve()
    keepers = {PACKAGE / "school" / f"{name}.py" for name in KEEPERS}
    behind = modules_behind(recipe) - keepers - {recipe}
    named = {module.relative_to(PACKAGE).as_posix(): module for module in behind}
    for name, module in sorted((named | {"": recipe}).items()):
        digest.update(f"\0{name}\0{bare(module.read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()[:12]


def modules_behind(path: str | Path) -> set[Path]:
    """The recipe and every module of the package that it imports, however indirectly.

    >>> sorted(path.name for path in modules_behind(PACKAGE / "files.py"))
    ['__init__.py', 'errors.py', 'files.py']
    """
    found: set[Path] = set()
    left = [Path(path)]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += imported(module.read_text(encoding="utf-8"))
    return found


def imported(source: str) -> list[Path]:
    """Files of the package that a module's import statements reach, anywhere in it.

    >>> sorted(path.name for path in imported("from minillm.files import atomic_write"))
    ['__init__.py', 'files.py']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    ours = (name.split(".") for name in names)
    # Importing a.b.c runs a and a.b, too.
    parts = {tuple(p[1:n]) for p in ours if p[0] == "minillm" for n in range(1, 9)}
    files = {PACKAGE.joinpath(*part, "__init__.py") for part in parts}
    files |= {PACKAGE.joinpath(*part[:-1], f"{part[-1]}.py") for part in parts if part}
    return [file for file in files if file.name in _listed(file.parent)]


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def bare(source: str) -> str:
    r"""Source without comments, docstrings and blank lines.

    >>> bare('def f(x):\n    "Docstring."\n\n    return x  # why\n')
    'def f(x):\n    return x'
    """
    lines, silent = source.split("\n"), docstring_lines(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
        if token.type == tokenize.NL and not lines[row - 1].strip():
            silent.add(row)  # a blank line within a string has no such token
    kept = [line for row, line in enumerate(lines, 1) if row not in silent]
    return "\n".join(kept).rstrip()
