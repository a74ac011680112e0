"""Count lines of code, because "minimal" is a promise that can be measured.

A line counts if Python would miss it: docstrings, comments and blank lines do not, and
a statement over three lines counts three. The README prints these lines of each room,
and beside them those that *do* something: imports and the heads of functions aside.
Heads carry the shape of every argument here, one to a line, and a third of the code is
of these two kinds; to write them shorter would save lines and nothing else. A test
holds what does something under 7,200 lines for the rooms that teach and 4,000 for what
surrounds them. Teaching text is therefore free; only mechanism costs. What chapters say
in Python, their exercises with all wrong answers, and the claims that they examine, is
content like the notebooks, and is counted apart.
"""

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
TEACHING = (
    "world",
    "data",
    "kernels",
    "model",
    "evaluation",
    "training",
    "compression",
    "finetuning",
    "alignment",
    "systems",
)
AROUND = ("serving", "school")
CONTENT = "exercises and claims"
LIMITS = {TEACHING: 7_200, AROUND: 4_000}

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """The number of lines of ``source`` that hold code.

    >>> code_lines('def f(x):\\n    "Docstring."\\n\\n    return x  # why\\n')
    2
    """
    return len(coded(source))


def coded(source: str) -> set[int]:
    """The numbers of these lines.

    >>> coded('x = 1  # one\\n\\ny = 2\\n')
    {1, 3}
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(source)


def docstring_lines(source: str) -> set[int]:
    """The numbers of all lines that belong to a docstring.

    >>> sorted(docstring_lines('x = 1\\nclass A:\\n    \"\"\"One.\\n\\n    Two.\"\"\"'))
    [3, 4, 5]
    """
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def doing_lines(source: str) -> int:
    """The number of lines of code that are neither import nor head of a function.

    >>> doing_lines('import os\\ndef f(\\n    x: int,\\n) -> int:\\n    return x\\n')
    1
    """
    tree, heads = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            heads.update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            heads.update(range(node.lineno, node.body[0].lineno))
    return len(coded(source) - heads)


@dataclass
class Count:
    """Lines of a room: all of its code, and what does something."""

    code: int = 0
    doing: int = 0


def room_lines(package: Path = PACKAGE) -> dict[str, Count]:
    """Lines of code per room, in the order of the pipeline; rooms not built count 0."""
    rooms = {room: Count() for room in (*TEACHING, *AROUND, CONTENT)}
    for room in TEACHING + AROUND:
        for file in (package / room).rglob("*.py"):
            count = rooms[CONTENT if is_content(file) else room]
            source = file.read_text(encoding="utf-8")
            count.code += code_lines(source)
            count.doing += doing_lines(source)
    return rooms


def is_content(file: Path) -> bool:
    """Whether a module is what a chapter says, and no mechanism.

    >>> is_content(Path("school/claims/ch01.py")), is_content(Path("school/zoo.py"))
    (True, False)
    """
    return file.parent.name in ("checks", "claims") and file.name.startswith("ch")


def totals(rooms: dict[str, Count]) -> dict[tuple[str, ...], Count]:
    """Lines per group of rooms that has a limit.

    >>> totals({room: Count(2, 1) for room in TEACHING + AROUND})[AROUND]
    Count(code=4, doing=2)
    """
    groups = {group: [rooms[room] for room in group] for group in LIMITS}
    return {
        group: Count(sum(c.code for c in counts), sum(c.doing for c in counts))
        for group, counts in groups.items()
    }


def table(rooms: dict[str, Count]) -> str:
    """The table in Markdown that the README prints."""
    lines = ["| room | lines of code | that do something |", "|---|---:|---:|"]
    lines += [f"| {room} | {c.code:,} | {c.doing:,} |" for room, c in rooms.items()]
    for group, c in totals(rooms).items():
        name = "rooms that teach" if group == TEACHING else "around them"
        most = f"**{c.doing:,}** of {LIMITS[group]:,}"
        lines.append(f"| **{name}** | **{c.code:,}** | {most} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(room_lines()))
