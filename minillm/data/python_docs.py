"""Real English on every machine: what Python says about itself.

Two sources, both part of each Python installation: the language reference as shown by
``help("topics")``, and the docstrings of the standard library. The latter are read with
``ast``, so nothing is imported and no code runs.

One module makes one document: its docstrings in the order of the source, each under the
name that it documents, as ``help(module)`` would show them. Single docstrings would be
too short for a context of 128 tokens, and would begin in the middle of nowhere.
"""

import ast
import contextlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Not documentation, not Python's own, or nothing but tables.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
SKIPPED |= {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def read_python_docs() -> Iterator[str]:
    """Documents: each topic of the reference, then each documented module."""
    with contextlib.suppress(ImportError):  # left out of some minimal installations
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for where, folders, files in os.walk(library):
        folders[:] = set(folders) - SKIPPED
        found += [Path(where, name) for name in files if name.endswith(".py")]
    for path in sorted(found):
        name = ".".join(path.relative_to(library).with_suffix("").parts)
        yield module_docs(path.read_bytes(), name.removesuffix(".__init__"))


def module_docs(source: bytes | str, name: str) -> str:
    """All docstrings of a module in order, each under its name; "" if there is none.

    >>> print(module_docs('"Sums."\\ndef add(a, b):\\n    "Return a + b."', "sums"))
    sums
    <BLANKLINE>
    Sums.
    <BLANKLINE>
    add(a, b)
    <BLANKLINE>
    Return a + b.
    """
    with contextlib.suppress(SyntaxError, ValueError):  # templates, for instance
        return "\n\n".join(_docstrings(ast.parse(source), name))
    return ""


def _docstrings(node: ast.AST, heading: str) -> Iterator[str]:
    """Docstrings under their headings, depth first; only classes are looked into."""
    if doc := ast.get_docstring(node):
        yield f"{heading}\n\n{doc}"
    if isinstance(node, ast.Module | ast.ClassDef):
        prefix = f"{heading}." if isinstance(node, ast.ClassDef) else ""
        for child in node.body:
            if isinstance(child, Definition):
                yield from _docstrings(child, prefix + _heading(child))


def _heading(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    names = [argument.arg for argument in node.args.posonlyargs + node.args.args]
    return f"{node.name}({', '.join(name for name in names if name != 'self')})"
