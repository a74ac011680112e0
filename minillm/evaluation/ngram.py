"""The best language model that only counts: interpolated modified Kneser-Ney.

A neural model should be measured against the strongest thing that preceded it. With h
the last n - 1 tokens and h' the same without the oldest, the probability of w is

    p(w | h) = (c(hw) - D(c(hw))) / c(h.)  +  gamma(h) p(w | h')
    gamma(h) = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)

Every count gives up a discount D, and what a context saves goes to the shorter context;
below the single token stands the uniform 1/V. N1(h.) is how many tokens followed h
exactly once. The discounts of an order come from n_j, how many n-grams have count j:

    Y = n1 / (n1 + 2 n2)      Dj = j - (j + 1) Y n_(j+1) / n_j,   j = 1, 2, 3

The idea of Kneser and Ney is in c: only the longest order counts occurrences. A shorter
one counts after how many different tokens its n-gram was seen, because it is asked only
where the longer context failed ("Francisco" is frequent, but after "San" alone).

Counting is vectorised: an n-gram is a pair (number of its first n - 1 tokens, last
token), so that one sort per order finds the distinct ones, whatever the vocabulary.

Source: Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling" (1998), section 3; fallback discounts as in KenLM (Heafield et al., 2013).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from minillm.errors import is_count, require

Ids = Int[np.ndarray, " N"]
Numbers = Float[np.ndarray, " N"]
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])
UNSEEN = -1


@dataclass(frozen=True)
class Level:
    """All n-grams of one order.

    Args:
        keys: sorted; number of the context times V, plus the last token.
        counts: occurrences, or in shorter orders distinct tokens before it.
        discounts: what a count of 0, 1, 2 and 3 or more gives up.
        totals: per context, the sum of its counts.
        gammas: per context, the share that goes to the shorter context.
    """

    keys: Int[np.ndarray, " G"]
    counts: Int[np.ndarray, " G"]
    discounts: Float[np.ndarray, " 4"]
    totals: Float[np.ndarray, " C"]
    gammas: Float[np.ndarray, " C"]

    def find(self, keys: Ids) -> Ids:
        """Number of each n-gram in this level, or UNSEEN.

        After an unseen context (-1) the key is negative, so it is not found either.
        """
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, UNSEEN)

    def interpolate(self, contexts: Ids, grams: Ids, shorter: Numbers) -> Numbers:
        """p(w | h) from p(w | h'); a context without counts passes it on unchanged."""
        counts = np.where(grams != UNSEEN, self.counts[grams], 0)
        totals = np.where(contexts != UNSEEN, self.totals[contexts], 0)
        kept = counts - self.discounts[counts.clip(max=3)]
        mixed = kept / np.maximum(totals, 1) + self.gammas[contexts] * shorter
        return np.where(totals > 0, mixed, shorter)


@dataclass(frozen=True)
class KneserNey:
    """An n-gram model over token ids; ``fit`` makes one.

    >>> model = KneserNey.fit(np.array([0, 1, 2] * 20), vocab_size=4, order=3)
    >>> np.exp(model.logprobs(np.array([0, 1, 2]))).round(2)
    array([0.29, 0.65, 0.97])
    """

    vocab_size: int
    levels: tuple[Level, ...]

    @classmethod
    def fit(cls, ids: Ids, vocab_size: int, order: int = 5) -> "KneserNey":
        """Count the n-grams of up to ``order`` tokens.

        Args:
            ids: one stream of tokens; documents follow each other with the end-of-text
                token between them.
            vocab_size: V; ids lie in 0..V-1.
            order: n; 1 looks at no context at all.

        Raises:
            ValueError: no ids, ids outside the vocabulary, an order below 1.
        """
        ids = _checked(ids, vocab_size)
        require(len(ids) > 0, "ids", ids, "at least one token", "give some text")
        require(is_count(order), "order", order, "1 or more", "5 is the usual choice")
        order = min(order, len(ids))

        contexts = np.zeros(len(ids), dtype=np.int64)  # of order 1: the empty one
        suffixes = contexts  # number of the n-gram without its first token
        tables, n_contexts = [], 1
        for n in range(order):
            grams = contexts * vocab_size + ids[n:]
            # numbers: which key each n-gram is; first: where each key first occurs
            keys, first, numbers, counts = np.unique(grams, True, True, True)
            if n > 0:  # the shorter order counts distinct tokens before its n-grams
                tables[-1][1] = np.bincount(suffixes[first], minlength=n_contexts)
            tables.append([keys, counts, n_contexts])
            contexts, suffixes, n_contexts = numbers[:-1], numbers[1:], len(keys)
        return cls(vocab_size, tuple(_level(*table, vocab_size) for table in tables))

    def logprobs(self, ids: Ids) -> Numbers:
        """ln p of each token given those before it, in nats; the first has no context.

        >>> model = KneserNey.fit(np.array([0, 1] * 50), vocab_size=2, order=2)
        >>> bool(model.logprobs(np.array([0, 1, 0]))[1:].sum() > -0.1)
        True
        """
        ids = _checked(ids, self.vocab_size)
        p = np.full(len(ids), 1 / self.vocab_size)
        contexts = np.zeros(len(ids), dtype=np.int64)
        for level in self.levels:
            grams = level.find(contexts * self.vocab_size + ids)
            p = level.interpolate(contexts, grams, p)
            contexts = np.concatenate([[UNSEEN], grams[:-1]])[: len(ids)]
        return np.log(p)


def _level(keys: Ids, counts: Ids, n_contexts: int, vocab_size: int) -> Level:
    D = estimate_discounts(counts)
    contexts = keys // vocab_size
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
    saved = np.bincount(contexts, D[counts.clip(max=3)], minlength=n_contexts)
    return Level(keys, counts, D, totals, saved / np.maximum(totals, 1))


def estimate_discounts(counts: Ids) -> Float[np.ndarray, " 4"]:
    """What a count of 0, 1, 2 and 3 or more gives up, from the counts of counts.

    Small or odd corpora have a count that never occurs, or an estimate of 0 or less (a
    context could then save nothing for unseen tokens, and these would have probability
    0); the fallback 1/2, 1, 3/2 then takes over.

    >>> estimate_discounts(np.array([1] * 8 + [2] * 4 + [3] * 2 + [4])).tolist()
    [0.0, 0.5, 1.25, 2.0]
    """
    n = np.bincount(counts.clip(max=5), minlength=6)
    if not n[1:5].all():
        return FALLBACK
    Y = n[1] / (n[1] + 2 * n[2])
    D = np.array([0.0] + [j - (j + 1) * Y * n[j + 1] / n[j] for j in (1, 2, 3)])
    return D if (D[1:] > 0).all() else FALLBACK  # Dj <= j holds by construction


def _checked(ids: Ids, vocab_size: int) -> Ids:
    whole = np.asarray(ids).astype(np.int64)
    fine = bool(((whole == ids) & (whole >= 0) & (whole < vocab_size)).all())
    limits = f"whole numbers in 0..{vocab_size - 1}"
    require(fine, "ids", ids, limits, "use the tokenizer's vocab_size")
    return whole
