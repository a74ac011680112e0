"""The rules of a notebook: what a reader may rely on in every chapter.

Short cells, one place for imports, a header that says what it costs, words for every
picture, the same sections at the end, and outputs that are the same everywhere.
"""

import re
from collections.abc import Iterator, Sequence

from minillm.school.budget import budget_of
from minillm.school.prose import outputs

LINES, COLUMNS, SCREEN, IGNORED = 25, 88, 40, 2
SECTIONS = (
    "What to remember",
    "Common mistakes",
    "Exercises",
    "Interview questions",
    "References",
)
HEADER = ("**After this you can", "**You need", "**Code")
IMPORT = re.compile(r"^\s*(?:import|from \S+ import) ", re.MULTILINE)
PICTURE = "*In the picture:"
IGNORE = re.compile(r"nbval[-_](?:ignore[-_]output|skip)", re.IGNORECASE)
# What no other machine would print. Seconds and gigabytes cannot be told from those
# that were computed; nbval finds them, since they are never the same twice.
MACHINE = re.compile(r"0x[0-9a-f]{6}|/tmp/|/home/|/Users/|\b[A-Z]:\\")


def faults(cells: Sequence[dict], chapter: bool = True) -> list[str]:
    """What a notebook does against the rules, in words; an empty list is praise.

    Args:
        cells: of a notebook that has been executed.
        chapter: whether it has a chapter's header and closing sections; solutions
            follow the other rules only.
    """
    found = [*_cells(cells), *_imports(cells), *_outputs(cells), *_pictures(cells)]
    if not cells or budget_of(cells[0]["source"]) is None:
        found.append("the first cell has no budget: CPU 2 cores · ~40 s · < 1 GB")
    return found + ([*_header(cells), *_end(cells)] if chapter else [])


def _cells(cells: Sequence[dict]) -> Iterator[str]:
    for i, cell in enumerate(cells):
        lines = cell["source"].split("\n")
        if len(lines) > LINES:
            yield f"cell {i} has {len(lines)} lines; {LINES} are allowed"
        wide = max(map(len, lines))
        if wide > COLUMNS:
            yield f"cell {i} has {wide} columns; {COLUMNS} are allowed"


def _imports(cells: Sequence[dict]) -> Iterator[str]:
    code = [(i, c["source"]) for i, c in enumerate(cells) if c["cell_type"] == "code"]
    for i, source in code[1:]:
        if IMPORT.search(source):
            yield f"cell {i} imports; imports stand in the first code cell"
    everything = "\n".join(source for _, source in code)
    if "torch" in everything and "torch.manual_seed(" not in code[0][1]:
        yield "the first code cell sets no seed: torch.manual_seed(0)"
    marks = (f"{c['source']} {c['metadata'].get('tags', ())}" for c in cells)
    ignored = sum(bool(IGNORE.search(mark)) for mark in marks)
    if ignored > IGNORED:
        yield f"{ignored} cells are not compared; {IGNORED} are allowed"


def _outputs(cells: Sequence[dict]) -> Iterator[str]:
    ran = [c["execution_count"] for c in cells if c["cell_type"] == "code"]
    if ran != list(range(1, len(ran) + 1)):
        yield "it was not executed from top to bottom"  # nbval would not say so
    for i, cell in enumerate(cells):
        text = "\n".join(outputs([cell]))
        if text.count("\n") > SCREEN:
            yield f"the output of cell {i} is longer than a screen ({SCREEN} lines)"
        if strange := MACHINE.search(text):
            yield f"the output of cell {i} is of one machine: {strange[0]!r}"
        kinds = {o.get("name", o["output_type"]) for o in cell.get("outputs", ())}
        for kind in sorted(kinds & {"stderr", "error"}):
            yield f"cell {i} has an output on {kind}"


def _pictures(cells: Sequence[dict]) -> Iterator[str]:
    for i, cell in enumerate(cells):
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", ())):
            after = cells[i + 1]["source"] if i + 1 < len(cells) else ""
            if PICTURE not in after:
                yield f"cell {i} draws; the next one must describe it: {PICTURE} ...*"


def _header(cells: Sequence[dict]) -> Iterator[str]:
    source = cells[0]["source"] if cells else ""
    title = source.split("\n")[0]
    if not (title.startswith("# ") and title.endswith("?")):
        yield f"the title is no question: {title!r}"
    for begin in HEADER:
        if begin not in source:
            yield f"the header has no line {begin} ...**"


def _end(cells: Sequence[dict]) -> Iterator[str]:
    texts = [c["source"] for c in cells if c["cell_type"] == "markdown"]
    for section in SECTIONS:
        if not any(f"## {section}" in text for text in texts):
            yield f"there is no section {section!r} at the end"
