"""Every number in a notebook's prose must have been printed by one of its cells.

Numbers in prose outlive the code that they came from: somebody changes a seed, and the
sentence goes on saying 0.63. So each number in Markdown has to stand in an output of
the same notebook, before or after it, or to be a rounding of one that does; 12% agrees
with a printed 12% and with a printed 0.12.

Not measured, and therefore free:

    formulas             $15\\%$, $$...$$: write a constant as what it is, mathematics
    code                 `B=16`, fenced blocks, links' targets, HTML tags
    years                four digits from 1900 to 2099
    places               chapter 07, section 3.4, equation 2, figure 1, table 5, arXiv
                         numbers, and numbers that open a list or a heading
    names                GPT-2, T5, A1, int8: digits that touch a letter or its hyphen
    the first cell       title and budget
    "References"         the section of that name, to its end
"""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

FREE = [
    r"```.*?```",
    r"\$\$.*?\$\$",
    r"`[^`\n]*`",
    r"\$[^$\n]*(?:\n[^$\n]+)*\$",
    r"\]\([^)]*\)",
    r"<[^>\n]*>|https?://\S+",
    r"^\s*\d+\. |^#+ \d[\d.]*",
    r"\b(?:chapters?|sections?|equations?|figures?|tables?|exercises?|question)\s+"
    r"\d[\d.]*(?:(?:,| and| to|–)\s*\d[\d.]*)*",
    r"\barXiv:?\s*\d+\.\d+|\b\d{4}\.\d{5}\b",
    r"\b[A-Za-z]\w*(?:[-.]?\d[\w.]*)+|\b\d+-?[A-Za-z]\w*",
    r"(?<![\d.,])(?:19|20)\d\d(?!\d|[.,]\d)",
]
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?\s?%?")
PRINTED = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?\s?%?")
REFERENCES = re.compile(r"^#+ +References.*", re.MULTILINE | re.DOTALL)


def unprinted(cells: Sequence[dict]) -> list[str]:
    """The numbers in the prose of a notebook that none of its cells has printed.

    >>> prose = {"cell_type": "markdown", "source": "It fell to 0.63, by 12%, in 2020."}
    >>> title = {"cell_type": "markdown", "source": "# What? ~40 s"}
    >>> output = {"name": "stdout", "text": "loss 0.6281"}
    >>> code = {"cell_type": "code", "source": "", "outputs": [output]}
    >>> unprinted([title, prose, code])
    ['12%']
    """
    shown = [value for text in outputs(cells) for value in values(text, PRINTED)]
    prose = [c["source"] for c in cells[1:] if c["cell_type"] == "markdown"]
    words = [word for text in prose for word in numbers(text)]
    return [word for word in words if not any(agrees(word, v) for v in shown)]


def numbers(markdown: str) -> list[str]:
    """The numbers in a text that are not free.

    >>> numbers("GPT-2 (2019), section 3: $2^7$ is 128, `x = 3`, 1,024 or 15 %.")
    ['128', '1,024', '15 %']
    """
    text = REFERENCES.sub(" ", markdown)
    for pattern in FREE:
        text = re.sub(pattern, " ", text, flags=re.MULTILINE | re.DOTALL | re.I)
    return [found[0].strip().rstrip(",") for found in NUMBER.finditer(text)]


def outputs(cells: Sequence[dict]) -> Iterator[str]:
    """All that cells have printed or returned as text."""
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", output.get("data", {}).get("text/plain", ""))
            yield text if isinstance(text, str) else "".join(text)


def values(text: str, pattern: re.Pattern = PRINTED) -> list[Decimal]:
    """The numbers in a text, percentages as parts of one.

    >>> values("1,024 tokens, 12%, 1.5e-3")
    [Decimal('1024'), Decimal('0.12'), Decimal('0.0015')]
    """
    return [value(found[0]) for found in pattern.finditer(text)]


def value(word: str) -> Decimal:
    """What a number means."""
    plain = Decimal(word.rstrip("% ").replace(",", ""))
    return plain / 100 if word.endswith("%") else plain


def agrees(word: str, shown: Decimal) -> bool:
    """Whether a printed value, rounded as the prose rounds, is what the prose says.

    >>> agrees("0.63", Decimal("0.6281")), agrees("12%", Decimal("0.1249"))
    (True, True)
    >>> agrees("0.63", Decimal("0.6")), agrees("13%", Decimal("0.1249"))
    (False, False)
    """
    said = value(word)
    return abs(said - shown) <= Decimal(10) ** said.as_tuple().exponent / 2
