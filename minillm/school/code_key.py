"""A short key for the code that a result depends on.

A result that took minutes is kept in a file, and the file must say whether it still
speaks of the code as it is. So it carries a hash of every module of ``minillm`` that
the recipe imports, directly or through others. Comments, docstrings and blank lines are
left out, as they change nothing; everything else changes the key.
"""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

import torch

from minillm.school.lines import docstring_lines

PACKAGE = Path(__file__).resolve().parents[1]


def code_key(path: str | Path) -> str:
    """Twelve hexadecimal digits for a recipe, all behind it, and torch's version."""
    digest = hashlib.sha256(torch.__version__.split("+")[0].encode())
    for module in sorted(modules_behind(path)):
        name = module.name if module == Path(path) else module.relative_to(PACKAGE)
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
    """Files of the package that a module's import statements reach, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    ours = (name.split(".") for name in names)
    # Importing a.b.c runs a and a.b, too.
    parts = {tuple(p[1:n]) for p in ours if p[0] == "minillm" for n in range(1, 9)}
    places = [PACKAGE.joinpath(*part) for part in parts]
    files = [place.with_suffix(".py") for place in places if place != PACKAGE]
    return [f for f in (*files, *(p / "__init__.py" for p in places)) if f.is_file()]


def bare(source: str) -> str:
    r"""Source without comments, docstrings and blank lines.

    >>> bare('def f(x):\n    "Docstring."\n\n    return x  # why\n')
    'def f(x):\n    return x'
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    silent = docstring_lines(source)
    kept = (line.rstrip() for n, line in enumerate(lines, 1) if n not in silent)
    return "\n".join(line for line in kept if line)
