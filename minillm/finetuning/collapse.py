"""Mode collapse: every single answer is fine, and all are the same one.

A model can narrow down in what it says while its loss looks well. It is seen only
between samples: distinct n-grams fall, all begin alike, any two overlap. Compare equal
numbers of samples of equal lengths, since more text repeats more words however lively
it is.

Source: Li et al. 2016 (arXiv:1510.03055) for distinct-n.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from minillm.errors import require
from minillm.finetuning.likeness import ngrams, similarity


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams for each n-gram said, above 0 and at most 1.

    Raises:
        ValueError: no text, an n that is no count.

    >>> distinct_n(["a b c", "a b d"])   # ab, bc, bd of four
    0.75
    """
    require(len(texts) > 0, "texts", texts, "at least 1", "draw some samples")
    said = [run for text in texts for run in ngrams(text, n)]
    return len(set(said)) / len(said)


def first_word_entropy(texts: Sequence[str]) -> float:
    """Entropy of the first words of N texts, in nats, 0 to ln N; none is one as well.

    Raises:
        ValueError: no text.

    >>> first_word_entropy(["a b", "a c"]), round(first_word_entropy(["a", "b"]), 4)
    (0.0, 0.6931)
    """
    require(len(texts) > 0, "texts", texts, "at least 1", "draw some samples")
    counts, N = Counter(ngrams(text, 1)[0] for text in texts).values(), len(texts)
    return sum(c / N * math.log(N / c) for c in counts)


def self_overlap(texts: Sequence[str], n: int = 2) -> float:
    """Mean J of all pairs of texts, 0 to 1: 1 if all say the same.

    Raises:
        ValueError: fewer than two texts, an n that is no count.

    >>> self_overlap(["a b c", "a b c", "d"])   # one pair of three
    0.3333333333333333
    """
    require(len(texts) > 1, "texts", texts, "at least 2", "draw more samples")
    return mean(similarity(a, b, n) for a, b in combinations(texts, 2))
