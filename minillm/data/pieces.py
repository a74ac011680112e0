"""Cutting text into pieces: about words, which no BPE merge may cross.

Without the cuts, "dog.", "dog!" and "dog," would become tokens before many a whole word
did. The cuts are made by one regular expression, and it must mean the same to Python,
which trains, and to the Rust and C engines of tiktoken and Hugging Face, which encode.
That rules out \\w, \\s and \\p{L}: engines disagree about them, and each new version of
Unicode changes them. So every class is spelled out in code points, today and for ever.

Beyond ASCII a whole block counts as letters or as symbols, whichever nearly all of it
is. Combining marks stay with their letters, so that Hindi and Thai words remain whole
(the \\p{L}+ of GPT-2 breaks them at every vowel sign).

Source of the idea: Radford et al., "Language Models are Unsupervised Multitask
Learners" (2019), section 2.2. Differs from GPT-2: the classes; digits stand alone.
"""

import re

from minillm.errors import require

SPACE = " \t\n\v\f\r"
DIGIT = "0-9"
LETTER = (
    "A-Za-z"
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u1fff"  # Latin to Khmer, without × and ÷
    # U+2000-2BFF is punctuation, currency, arrows, mathematics
    "\u2c00-\u2dff"
    # U+2E00-303F is punctuation, of Chinese and Japanese too
    "\u3040-\U0001efff"  # kana, Han, Hangul, historic scripts
    # U+1F000-1FFFF is emoji
    "\U00020000-\U0010ffff"  # rare Han
)

PATTERN = "|".join(
    [
        "'(?:[sdmt]|ll|re|ve)(?![A-Za-z])",  # the end of "it's", not the start of 's'
        f" ?[{LETTER}]+",  # a word takes the space before it along
        f"[{DIGIT}]",  # one by one, so that 12 and 21 are made of the same tokens
        f" ?[^{SPACE}{LETTER}{DIGIT}]+",  # punctuation, symbols, emoji
        # White space, but for the last one before a word. Bounded, because Rust's
        # engine runs out of stack when it looks ahead over a million of them.
        f"[{SPACE}]{{1,256}}(?![^{SPACE}])",
        f"[{SPACE}]+",
    ]
)


def split(text: str, pattern: str = PATTERN) -> list[str]:
    """Cut text into the pieces that no merge may cross; joined, they are the text.

    Raises:
        ValueError: the pattern is no regular expression, has a capturing group, or
            leaves characters of the text out (they would be lost without a sound);
            or the text is no valid Unicode.

    >>> split("It's  42 'cats'!")
    ['It', "'s", ' ', ' ', '4', '2', " '", 'cats', "'!"]
    """
    utf8(text)  # so that every piece has bytes
    pieces = _compiled(pattern).findall(text)
    require(
        "".join(pieces) == text,
        "pattern",
        pattern,
        "one that matches every character of the text",
        "end it with the alternative |[\\s\\S]",
    )
    return pieces


def _compiled(pattern: str) -> re.Pattern[str]:
    remedy = "use (?:...) for groups, or the default pattern"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} does not compile: {error}") from error
    require(
        compiled.groups == 0, "pattern", pattern, "without capturing groups", remedy
    )
    return compiled


def utf8(text: str) -> bytes:
    """Text as UTF-8 bytes.

    Raises:
        ValueError: half of a surrogate pair (it comes from broken JSON escapes) has no
            UTF-8 form; it could not survive a round trip.

    >>> utf8("né")
    b'n\\xc3\\xa9'
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate at character {error.start}, which no bytes can "
            'spell; clean it with text.encode("utf-8", "replace").decode()'
        ) from error
