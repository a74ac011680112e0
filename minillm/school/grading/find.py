"""From what was handed in to what must run: the named functions and what they use.

A notebook holds plots, training loops and downloads. None of them is needed to ask a
function a question, so none of them runs. From the statements at top level we take
those that define the names that are asked for, then those that define what these use,
and so on; in the order in which they were written. Definitions, imports and assignments
count; calls and loops for their effect do not.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
GUARDED = (ast.If, ast.Try, ast.With)  # an import that may fail, a device that may be


@dataclass(frozen=True)
class Found:
    """An answer that can be run.

    Args:
        source: the statements that are needed, as Python text.
        missing: names that nothing defines.
        notes: what the student should know.
    """

    source: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def find(statements: Sequence[ast.stmt], names: Sequence[str]) -> Found:
    """What must run so that ``names`` are there.

    >>> tree = ast.parse("import math\\nK = 2\\nplot(K)\\ndef f(x): return K * x")
    >>> print(find(tree.body, ["f"]).source)
    K = 2
    <BLANKLINE>
    def f(x):
        return K * x
    """
    statements = [part for node in statements for part in _parts(node)]
    makers = _makers(statements)
    kept = _needed(statements, makers, names)
    missing = tuple(name for name in names if name not in makers)
    notes = [n for name in names if (n := _remark(name, statements))]
    nodes = [node for n, node in enumerate(statements) if n in kept]
    nodes.sort(key=lambda node: not _from_future(node))  # Python wants them first
    try:
        source = "\n\n".join(map(ast.unparse, nodes))
    except RecursionError:
        return Found("", tuple(names), ("a part is nested too deeply to be read",))
    return Found(source, missing, tuple(notes))


def _parts(node: ast.stmt) -> list[ast.stmt]:
    """An import of several names as several: perhaps only the one in use is there."""
    if isinstance(node, ast.Import):
        return [ast.Import([name]) for name in node.names]
    if isinstance(node, ast.ImportFrom):
        return [ast.ImportFrom(node.module, [a], node.level) for a in node.names]
    return [node]


def _makers(statements: Sequence[ast.stmt]) -> dict[str, list[int]]:
    """For each name, the numbers of the statements that make it what it is at the end.

    A definition makes those before it void; an assignment may build on them.
    """
    makers: dict[str, list[int]] = {}
    for number, node in enumerate(statements):
        for name in _bound(node):
            if isinstance(node, DEFINITIONS):
                makers[name] = []
            makers.setdefault(name, []).append(number)
    return makers


def _needed(
    statements: Sequence[ast.stmt], makers: dict[str, list[int]], names: Iterable[str]
) -> set[int]:
    """Numbers of the statements behind ``names``, and behind what those use."""
    kept = {n for n, node in enumerate(statements) if _always(node)}
    waiting = list(names)
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        for number in makers.get(name, []):
            kept.add(number)
            waiting += _used(statements[number])
    return kept


def _always(node: ast.stmt) -> bool:
    """Imports that change how all that follows is read."""
    star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    return star or _from_future(node)


def _from_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement at top level gives a value."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    if isinstance(node, IMPORTS):
        return {(a.asname or a.name).split(".")[0] for a in node.names}
    if isinstance(node, GUARDED):
        return set().union(*(_bound(n) for n in _inside(node)))
    if not isinstance(node, ASSIGNMENTS):
        return set()
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name for target in targets for name in _assigned(target)}


def _inside(node: ast.stmt) -> list[ast.stmt]:
    """Statements of all branches of a guarded block."""
    handlers = [s for h in getattr(node, "handlers", []) for s in h.body]
    others = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
    return [*handlers, *(statement for part in others for statement in part)]


def _assigned(target: ast.expr) -> set[str]:
    """Names that a target changes: ``a``, ``a, b``, and the table in ``table[k]``."""
    if isinstance(target, ast.Subscript):
        return _assigned(target.value)
    nodes = ast.walk(target)
    return {n.id for n in nodes if isinstance(n, ast.Name)}


def _used(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _remark(name: str, statements: Sequence[ast.stmt]) -> str:
    """What is odd about where a name comes from, if anything."""
    makers = [node for node in statements if name in _bound(node)]
    if makers and all(isinstance(node, IMPORTS) for node in makers):
        return f"{name} is imported, not written here"
    times = sum(isinstance(node, DEFINITIONS) for node in makers)
    return f"{name} is defined {times} times; the last one counts" if times > 1 else ""
