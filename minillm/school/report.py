"""One page that shows what a run did, in one file that can be sent to anyone.

The page holds its pictures and its style; it loads nothing and runs no script. What it
says is computed from the run; nothing is worded as a success before it was one.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from matplotlib.axes import Axes

from minillm.files import atomic_write
from minillm.school.show import data_url

WORDS = tomllib.loads((Path(__file__).parent / "page.toml").read_text("utf-8"))


def words(name: str) -> str:
    """A paragraph of ``page.toml``, as one line.

    >>> words("kinds")[:40]
    'Three kinds of text make up a document. '
    """
    return " ".join(WORDS[name].split())


@dataclass
class Page:
    """A report in the making: call its methods in reading order, then ``write``.

    >>> page = Page("A title"); page.text("1 < 2"); "1 &lt; 2" in page.html()
    True
    """

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, kind: str = "") -> None:
        """Add a paragraph; ``kind`` is "", "lead" or "note"."""
        self.parts.append(f'<p class="{kind}">{escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; cells that are numbers are aligned on the right."""
        numeric = [
            all(_is_number(row[i]) for row in rows) and bool(rows)
            for i in range(len(header))
        ]
        lines = [_row(header, numeric, "th"), *(_row(r, numeric, "td") for r in rows)]
        self.parts.append("<table>" + "\n".join(lines) + "</table>")

    def picture(self, axes: Axes, alt: str) -> None:
        """Add a figure; ``alt`` says in words what it shows, and is its caption."""
        image = f'<img src="{data_url(axes)}" alt="{escape(alt, quote=True)}">'
        caption = f"<figcaption>{escape(alt)}</figcaption>"
        self.parts.append(f"<figure>{image}{caption}</figure>")

    def sample(self, prompt: str, continuation: str, caption: str) -> None:
        """Add what a model wrote after a prompt."""
        self.parts.append(f'<p class="note">{escape(caption)}</p>')
        text = f"<b>{escape(prompt)}</b>{escape(_printable(continuation))}"
        self.parts.append(f"<pre>{text}</pre>")

    def priced(self, parts: Sequence[tuple[str, str, str]]) -> None:
        """Add a text whose parts are marked by kind, each with its price below.

        Args:
            parts: (text, kind, price); kinds are those of ``minillm.world.recorder``.
        """
        marked = "".join(
            f'<span class="{kind}">{escape(text)}'
            + (f"<sub>{escape(price)}</sub></span>" if price else "</span>")
            for text, kind, price in parts
        )
        self.parts.append(f'<p class="priced">{marked}</p>')

    def html(self) -> str:
        """The whole page."""
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{WORDS['css']}</style></head>\n<body><h1>{title}</h1>\n"
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page atomically.

        Raises:
            DiskFullError: no room; an older page is untouched.
        """
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return Path(path)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table for a terminal, columns aligned.

    >>> print(plain_table(["stage", "seconds"], [["read", "3"], ["train", "105"]]))
    stage  seconds
    read         3
    train      105
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(c[1:]) and all(map(_is_number, c[1:])) for c in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(cells: Sequence[str], numeric: Sequence[bool], tag: str) -> str:
    made = [
        f'<{tag} class="{"number" if number else ""}">{escape(cell)}</{tag}>'
        for cell, number in zip(cells, numeric, strict=True)
    ]
    return f"<tr>{''.join(made)}</tr>"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(",", "").replace(".", "").isdigit()


def _printable(text: str) -> str:
    """Control characters would break the page or hide in it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
