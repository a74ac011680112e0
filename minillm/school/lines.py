"""Count lines of code, because "minimal" is a promise that can be measured.

A line counts if Python would miss it: docstrings, comments and blank lines do not, and
a statement over three lines counts three. The README prints the totals and a test
holds them under their limits: 6,000 for the rooms that teach, 4,000 for what surrounds
them. Teaching text is therefore free; only mechanism costs. What chapters say in
Python, their exercises with all wrong answers, and the claims that they examine, is
content like the notebooks, and is counted apart.
"""

import ast
import io
import tokenize
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
LIMITS = {TEACHING: 6_000, AROUND: 4_000}

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
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(source))


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


def room_lines(package: Path = PACKAGE) -> dict[str, int]:
    """Lines of code per room, in the order of the pipeline; rooms not built count 0."""
    rooms = dict.fromkeys((*TEACHING, *AROUND, CONTENT), 0)
    for room in TEACHING + AROUND:
        for file in (package / room).rglob("*.py"):
            place = CONTENT if is_content(file) else room
            rooms[place] += code_lines(file.read_text(encoding="utf-8"))
    return rooms


def is_content(file: Path) -> bool:
    """Whether a module is what a chapter says, and no mechanism.

    >>> is_content(Path("school/claims/ch01.py")), is_content(Path("school/zoo.py"))
    (True, False)
    """
    return file.parent.name in ("checks", "claims") and file.name.startswith("ch")


def totals(rooms: dict[str, int]) -> dict[tuple[str, ...], int]:
    """Lines of code per group of rooms that has a limit.

    >>> totals({room: 1 for room in TEACHING + AROUND})[AROUND]
    2
    """
    return {group: sum(rooms[room] for room in group) for group in LIMITS}


def table(rooms: dict[str, int]) -> str:
    """The table in Markdown that the README prints."""
    lines = ["| room | lines of code |", "|---|---:|"]
    lines += [f"| {room} | {count:,} |" for room, count in rooms.items()]
    for group, count in totals(rooms).items():
        name = "rooms that teach" if group == TEACHING else "around them"
        lines.append(f"| **{name}** (limit {LIMITS[group]:,}) | **{count:,}** |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(room_lines()))
