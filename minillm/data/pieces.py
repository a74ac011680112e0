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

SPACE, DIGIT = " \t\n\v\f\r", "0-9"
LETTER = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u1fff"  # Latin to Khmer, without × and ÷
    # U+2000-2BFF is punctuation, currency, arrows, mathematics; U+2E00-303F is
    # punctuation, of Chinese and Japanese too; between and behind: kana, Han, Hangul
    "\u2c00-\u2dff\u3040-\U0001efff"
    # U+1F000-1FFFF is emoji
    "\U00020000-\U0010ffff"  # rare Han
)

PATTERN = (
    "'(?:[sdmt]|ll|re|ve)(?![A-Za-z])|"  # the end of "it's", not the start of 's'
    f" ?[{LETTER}]+|"  # a word takes the space before it along
    f"[{DIGIT}]|"  # one by one, so that 12 and 21 are made of the same tokens
    f" ?[^{SPACE}{LETTER}{DIGIT}]+|"  # punctuation, symbols, emoji
    # White space, but for the last one before a word. Bounded, because Rust's
    # engine runs out of stack when it looks ahead over a million of them.
    f"[{SPACE}]{{1,256}}(?![^{SPACE}])|[{SPACE}]+"
)


def split(text: str) -> list[str]:
    """Cut text into the pieces that no merge may cross; joined, they are the text.

    Raises:
        TypeError, ValueError: the text is no ``str``, or no valid Unicode.

    >>> split("It's  42 'cats'!")
    ['It', "'s", ' ', ' ', '4', '2', " '", 'cats', "'!"]
    """
    utf8(text)  # so that every piece has bytes
    return re.findall(PATTERN, text)


def utf8(text: str) -> bytes:
    """Text as UTF-8 bytes.

    Raises:
        TypeError: no ``str``.
        ValueError: half of a surrogate pair (it comes from broken JSON escapes) has no
            UTF-8 form; it could not survive a round trip.

    >>> utf8("né")
    b'n\\xc3\\xa9'
    """
    require(isinstance(text, str), "text", text, "str", "decode bytes first", TypeError)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        where = f"at character {error.start}; clean it: text.encode('utf-8', 'replace')"
        raise ValueError(f"text has a lone surrogate {where}") from error
