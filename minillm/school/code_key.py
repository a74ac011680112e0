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

# They keep results and decide none, so results do not grow old with them. The zoo is
# one of them: who loads a model names its recipe, and with it what it was made by.
KEEPERS = ("code_key", "findings", "lines", "machine", "studies", "zoo")


def code_key(path: str | Path) -> str:
    """Twelve hexadecimal digits for a recipe, all behind it, and torch's version.

    >>> len(code_key(PACKAGE / "files.py"))
    12
    """
    digest = hashlib.sha256(torch.__version__.split("+")[0].encode())
    recipe = Path(path).resolve()
    behind = modules_behind(recipe) - {recipe}
    named = {module.relative_to(PACKAGE).as_posix(): module for module in behind}
    for name, module in sorted((named | {"": recipe}).items()):
        digest.update(f"\0{name}\0{bare(module.read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()[:12]


def modules_behind(path: str | Path) -> set[Path]:
    """The recipe and every module of the package that it imports, however indirectly.

    Keepers are not among them, nor what only they import.

    >>> sorted(path.name for path in modules_behind(PACKAGE / "files.py"))
    ['errors.py', 'files.py']
    """
    found: set[Path] = set()
    keepers = {PACKAGE / "school" / f"{name}.py" for name in KEEPERS}
    left = [Path(path)]
    while left:
        module = left.pop()
        if module not in found | keepers:
            found.add(module)
            left += imported(module.read_text(encoding="utf-8"))
    return found


def imported(source: str) -> list[Path]:
    """Files of the package that a module's import statements reach, anywhere in it.

    A room's ``__init__`` passes names on: ``from minillm.training import Trainer``
    needs the module that Trainer stands in, not all that the room offers. So a room may
    offer more without making results old.

    >>> sorted(path.name for path in imported("from minillm.files import atomic_write"))
    ['files.py']
    >>> [path.name for path in imported("from minillm.training import Trainer")]
    ['trainer.py']
    """
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _on_the_way_to(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found |= _source_of(node.module, alias.name)
    return sorted(found)


def _on_the_way_to(module: str) -> set[Path]:
    """What ``import a.b.c`` runs: a, a.b and a.b.c."""
    parts = module.split(".")
    files = (_file_of(".".join(parts[:n])) for n in range(1, len(parts) + 1))
    return {file for file in files if file}


def _source_of(module: str, name: str) -> set[Path]:
    """Where ``from module import name`` takes it from, past rooms that pass it on."""
    submodule, file = _file_of(f"{module}.{name}"), _file_of(module)
    if submodule or not file:
        return {submodule} if submodule else set()
    if file.name == "__init__.py":
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return _source_of(node.module, alias.name)
    return {file}


def _file_of(module: str) -> Path | None:
    """The file of a module of ours, by its full name; None if there is no such file."""
    top, *parts = module.split(".")
    if top != "minillm":
        return None
    files = [PACKAGE.joinpath(*parts, "__init__.py")]
    if parts:
        files.append(PACKAGE.joinpath(*parts[:-1], f"{parts[-1]}.py"))
    return next((file for file in files if file.name in _listed(file.parent)), None)


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
