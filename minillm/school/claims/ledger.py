"""The ledger of claims: read from what the committed notebooks printed.

python -m minillm.school.claims.ledger     print it as a table in Markdown
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
HEAD = re.compile(r"^Claim (\w+), from (.+):$", re.MULTILINE)
TAIL = re.compile(r"^(?:Measured: (.+)\. )?Verdict: (\w+)\.$", re.MULTILINE)


class Entry(NamedTuple):
    """A claim as a reader of the notebook has seen it, with a value if it has one."""

    id: str
    sentence: str
    source: str
    measured: str | None
    verdict: str
    notebook: str


def ledger(folder: Path = NOTEBOOKS) -> list[Entry]:
    """Every claim that a notebook made, in the order of reading."""
    entries = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        for text in printed(json.loads(path.read_text(encoding="utf-8"))):
            entries += entries_of(text, path.stem)
    return entries


def printed(notebook: dict) -> Iterator[str]:
    """What each cell of a notebook wrote to stdout."""
    for cell in notebook["cells"]:
        streams = [o for o in cell.get("outputs", ()) if o.get("name") == "stdout"]
        if streams:
            yield "".join("".join(o["text"]) for o in streams)


def entries_of(text: str, notebook: str = "") -> list[Entry]:
    """The claims in what a cell has printed.

    >>> text = '''Claim X1, from a guide:
    ...     Two is
    ...     large.
    ... Measured: 2. Verdict: refuted.'''
    >>> entries_of(text, "01_some")[0][:5]
    ('X1', 'Two is large.', 'a guide', '2', 'refuted')
    """
    heads = list(HEAD.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    entries = []
    for head, end in zip(heads, ends, strict=False):  # no head: one end too many
        if tail := TAIL.search(text, head.end(), end):
            sentence = " ".join(text[head.end() : tail.start()].split())
            entries.append(Entry(head[1], sentence, head[2], *tail.groups(), notebook))
    return entries


def table(entries: list[Entry]) -> str:
    """The ledger in Markdown."""
    lines = ["| id | what is said | measured | verdict |", "|---|---|---|---|"]
    for e in entries:
        lines.append(f"| {e.id} | {e.sentence} | {e.measured or ''} | {e.verdict} |")
    return "\n".join(lines)


def main(folder: Path = NOTEBOOKS) -> None:
    """Print the ledger."""
    print(table(ledger(folder)))


if __name__ == "__main__":
    main()
