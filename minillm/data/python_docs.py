"""Real English on every machine: what Python says about itself.

Two sources, both part of each Python installation: the language reference as shown by
``help("topics")``, and the docstrings of the standard library. The latter are read with
``ast``, so nothing is imported and no code runs.

One module makes one document: its docstrings in the order of the source, each under the
name that it documents, as ``help(module)`` would show them. Single docstrings would be
too short for a context of 128 tokens, and would begin in the middle of nowhere.
"""

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

SKIPPED_FOLDERS = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"),
    *("site-packages", "dist-packages", "ensurepip", "encodings", "pydoc_data"),
}  # not documentation, not Python's own, or nothing but tables
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def read_python_docs(progress: bool = False) -> Iterator[str]:
    """Documents: each topic of the reference, then each documented module."""
    yield from _topics()
    library = Path(sysconfig.get_path("stdlib"))
    for path in tqdm(_modules(library), desc="Reading docs", disable=not progress):
        source = path.read_bytes()
        if b'"""' in source or b"'''" in source:  # parsing is the slow part
            name = ".".join(path.relative_to(library).with_suffix("").parts)
            yield module_docs(source, name.removesuffix(".__init__"))


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # left out of some minimal installations
        return []
    return [topics[name] for name in sorted(topics)]


def _modules(library: Path) -> list[Path]:
    found = []
    for where, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [Path(where) / name for name in files if name.endswith(".py")]
    return sorted(found)


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
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates of code generators, for instance
        return ""
    parts = [f"{heading}\n\n{doc}" for heading, doc in _docstrings(tree, name, "")]
    return "\n\n".join(parts)


def _docstrings(node: ast.AST, heading: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Headings and docstrings, depth first; only classes are looked into."""
    doc = ast.get_docstring(node)
    if doc and doc.strip():
        yield heading, doc
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if isinstance(node, ast.ClassDef):
        prefix += f"{node.name}."
    for child in node.body:
        if isinstance(child, Definition):
            yield from _docstrings(child, prefix + _heading(child), prefix)


def _heading(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    arguments = [argument.arg for argument in node.args.posonlyargs + node.args.args]
    return f"{node.name}({', '.join(a for a in arguments if a != 'self')})"
