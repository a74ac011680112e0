r"""How alike are two texts? By the runs of n words that they share.

.. math:: J(a, b) = \frac{|A \cap B|}{|A \cup B|}

where A and B are the sets of their runs. It costs a comparison for each pair of texts,
which is for thousands of them, not for millions.

Source: Broder 1997, On the resemblance and containment of documents.
"""

import re
import unicodedata
from itertools import combinations

from minillm.errors import require_count


def normalise(text: str) -> str:
    """The text without what makes no other text of it: case, blanks, composed accents.

    Marks stay, for 2 + 2 is not 2 - 2; and an exponent stays what it is, which the
    usual NFKC would make a digit.

    >>> normalise("  Who  IS\\nit? "), normalise("x²")
    ('who is it?', 'x²')
    """
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, marks being words; a shorter text is one run.

    Raises:
        ValueError: an n that is no count.

    >>> ngrams("Is 2+2 4?", 5)
    [('is', '2', '+', '2', '4'), ('2', '+', '2', '4', '?')]
    """
    require_count(n=n)
    words = re.findall(r"\w+|[^\w\s]", normalise(text))
    starts = range(max(1, len(words) - n + 1))
    return [tuple(words[i : i + n]) for i in starts]


def similarity(a: str, b: str, n: int = 3) -> float:
    """J, the part of their runs of n words that two texts share, 0 to 1.

    >>> similarity("a b c d", "A b c e")   # abc of abc, bcd, bce
    0.3333333333333333
    """
    return _jaccard(set(ngrams(a, n)), set(ngrams(b, n)))


def _jaccard(A: set, B: set) -> float:
    return len(A & B) / len(A | B)


def near_texts(texts: dict[int, str], threshold: float, n: int) -> dict[int, set[int]]:
    """For each text the others whose J is at least the threshold.

    >>> near_texts({1: "a b c d", 2: "a b c d!", 5: "e"}, threshold=0.6, n=3)
    {1: {2}, 2: {1}, 5: set()}
    """
    runs = {i: set(ngrams(text, n)) for i, text in texts.items()}
    near = {i: set() for i in texts}
    for i, j in combinations(texts, 2):
        if _jaccard(runs[i], runs[j]) >= threshold:
            near[i].add(j)
            near[j].add(i)
    return near
