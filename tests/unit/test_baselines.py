"""Kneser-Ney against dictionaries and its identities; compressors by their windows."""

import math
import pydoc_data.topics
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from minillm.evaluation import bits_per_byte
from minillm.evaluation.baselines import compressor_bits_per_byte
from minillm.evaluation.ngram import FALLBACK, KneserNey, estimate_discounts

TOPICS = list(pydoc_data.topics.topics.values())
TRAIN = np.frombuffer("\n".join(TOPICS[:30]).encode(), dtype=np.uint8)
HELDOUT = np.frombuffer("\n".join(TOPICS[30:33]).encode(), dtype=np.uint8)


def random_ids(n: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """A stream with structure: each token likes the square of the one before it."""
    rng = random.Random(seed)
    ids = [0]
    for _ in range(n - 1):
        liked = (ids[-1] ** 2 + 1) % (vocab_size - 1)  # the last token never occurs
        ids.append(liked if rng.random() < 0.5 else rng.randrange(vocab_size - 1))
    return np.array(ids)


class SlowKneserNey:
    """The formulas of the docstring, word for word, on dictionaries."""

    def __init__(self, ids, vocab_size: int, order: int):
        self.vocab_size, self.order = vocab_size, order
        self.counts = {}
        for n in range(1, order + 1):
            grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
            before = defaultdict(set)
            for i in range(1, len(grams)):
                before[grams[i]].add(ids[i - 1])
            distinct = {gram: len(before[gram]) for gram in grams}
            self.counts[n] = dict(Counter(grams)) if n == order else distinct
        self.D = {n: self.discounts(c.values()) for n, c in self.counts.items()}

    @staticmethod
    def discounts(counts) -> list[float]:
        n = Counter(counts)
        if not all(n[j] for j in (1, 2, 3, 4)):
            return [0, 0.5, 1, 1.5]
        Y = n[1] / (n[1] + 2 * n[2])
        D = [0] + [j - (j + 1) * Y * n[j + 1] / n[j] for j in (1, 2, 3)]
        return D if min(D[1:]) > 0 else [0, 0.5, 1, 1.5]

    def p(self, w: int, h: tuple[int, ...]) -> float:
        h = h[max(0, len(h) - self.order + 1) :]
        shorter = self.p(w, h[1:]) if h else 1 / self.vocab_size
        level, D = self.counts[len(h) + 1], self.D[len(h) + 1]
        followers = [c for gram, c in level.items() if gram[:-1] == h]
        if sum(followers) == 0:
            return shorter
        gamma = sum(D[min(c, 3)] for c in followers) / sum(followers)
        c = level.get((*h, w), 0)
        return (c - D[min(c, 3)]) / sum(followers) + gamma * shorter


def distribution(model: KneserNey, context) -> np.ndarray:
    """p(w | context) for every token w of the vocabulary."""
    streams = ([*context, w] for w in range(model.vocab_size))
    return np.exp([model.logprobs(np.array(ids))[-1] for ids in streams])


# --- Kneser-Ney ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 60, 400])
def test_vectorised_counting_equals_the_formulas_on_dictionaries(order, n):
    ids, heldout = random_ids(n, 7), random_ids(50, 7, seed=1)
    heldout[20:23] = 6  # a token that training never saw
    slow = SlowKneserNey(ids.tolist(), 7, min(order, n))
    fast = KneserNey.fit(ids, 7, order).logprobs(heldout)
    tokens = heldout.tolist()
    expected = [math.log(slow.p(w, tuple(tokens[:i]))) for i, w in enumerate(tokens)]
    np.testing.assert_allclose(fast, expected, rtol=1e-10)


def test_the_reference_is_not_always_on_its_fallback_discounts():
    slow = SlowKneserNey(random_ids(400, 7).tolist(), 7, 3)
    assert slow.D[3] != [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_one_after_any_context(order):
    model = KneserNey.fit(TRAIN, 256, order)
    for context in (
        b"",
        b"t",
        b"the ",
        b"\x00\x01\x02\x03",
        b"the\x00",
        b"\x00the",
        b"q",
    ):
        p = distribution(model, context)
        assert p.min() > 0
        assert abs(p.sum() - 1) < 1e-9


def test_a_score_depends_on_the_four_tokens_before_and_on_nothing_else():
    model = KneserNey.fit(TRAIN, 256)
    scores = model.logprobs(HELDOUT[:200])
    for i in range(200):
        alone = model.logprobs(HELDOUT[max(0, i - 4) : i + 1])[-1]
        assert scores[i] == pytest.approx(alone, rel=1e-12)


def test_each_longer_context_helps_and_smoothing_beats_both_of_its_rivals():
    nats = [
        -KneserNey.fit(TRAIN, 256, n).logprobs(HELDOUT).mean() for n in (1, 2, 3, 5)
    ]
    assert nats == sorted(nats, reverse=True)
    assert nats[0] < math.log(256)

    pairs = Counter(zip(TRAIN[:-1].tolist(), TRAIN[1:].tolist(), strict=True))
    singles = Counter(TRAIN[:-1].tolist())
    tests = list(zip(HELDOUT[:-1].tolist(), HELDOUT[1:].tolist(), strict=True))
    assert any(pairs[pair] == 0 for pair in tests)  # unsmoothed: infinitely many nats
    add_one = [math.log((pairs[a, b] + 1) / (singles[a] + 256)) for a, b in tests]
    assert nats[1] < -np.mean(add_one)


def test_a_token_that_follows_only_one_other_is_not_expected_elsewhere():
    """ "Francisco": three times as frequent as "glasses", but after "San" alone."""
    san, francisco, glasses = 0, 1, 2
    ids = [san, francisco] * 30
    for i in range(10):
        ids += [10 + i, glasses, 20 + i]
    model = KneserNey.fit(np.array(ids), 40, order=2)
    p = distribution(model, [39])  # never seen
    assert p[glasses] > 2 * p[francisco]


def test_without_context_order_one_knows_frequencies():
    ids = np.array([0] * 90 + [1] * 9 + [2])
    p = distribution(KneserNey.fit(ids, 4, order=1), [])
    np.testing.assert_allclose(p[:2], [0.9, 0.09], atol=0.02)
    assert p[3] > 0


def test_a_context_longer_than_the_order_or_the_stream_is_cut():
    model = KneserNey.fit(TRAIN, 256, order=3)
    long, short = TRAIN[:100], TRAIN[98:100]
    assert (distribution(model, long) == distribution(model, short)).all()
    tiny = KneserNey.fit([1, 2], 4, order=5)
    assert len(tiny.levels) == 2 and np.isfinite(tiny.logprobs([3, 3, 3, 1, 2])).all()


def test_degenerate_streams_have_finite_scores():
    for ids in ([0], [0] * 50, list(range(50)), [0, 1] * 30):
        model = KneserNey.fit(ids, 60)
        assert np.isfinite(model.logprobs(ids)).all()
        assert model.logprobs([]).shape == (0,)


def test_discounts_fall_back_where_the_estimate_makes_no_sense():
    assert (estimate_discounts(np.array([1, 1, 2, 3])) == FALLBACK).all()  # no 4
    uneven = np.repeat([1, 2, 3, 4], [1000, 100, 1000, 10])  # D2 would be negative
    assert (estimate_discounts(uneven) == FALLBACK).all()
    falling = np.repeat([1, 2, 3, 4, 9], [1000, 300, 120, 60, 500])
    Y = 1000 / 1600
    expected = [0, 1 - 2 * Y * 0.3, 2 - 3 * Y * 0.4, 3 - 4 * Y * 0.5]
    np.testing.assert_allclose(estimate_discounts(falling), expected)


@pytest.mark.parametrize(
    ("ids", "vocab_size", "order", "message"),
    [
        ([], 4, 5, "at least one token"),
        ([4], 4, 5, r"ids must be whole numbers in 0..3"),
        ([-1], 4, 5, r"ids must be whole numbers in 0..3"),
        ([1], 4, 0, "order must be"),
        ([1], 0, 5, "ids must be"),
    ],
)
def test_bad_streams_are_refused(ids, vocab_size, order, message):
    with pytest.raises(ValueError, match=message):
        KneserNey.fit(np.array(ids, dtype=int), vocab_size, order)
    with pytest.raises(ValueError, match="whole numbers"):
        KneserNey.fit(np.array([0.5]), 4)


# --- bits per byte ------------------------------------------------------------------


def test_a_five_gram_over_bytes_spends_far_less_than_eight_bits_on_each():
    nats = -KneserNey.fit(TRAIN, 256).logprobs(HELDOUT).sum()
    assert 1.5 < bits_per_byte(nats, len(HELDOUT)) < 3


def test_noise_cannot_be_compressed_and_repetition_can():
    noise = random.Random(0).randbytes(50_000)
    for method in ("gzip", "bz2", "xz"):
        assert 7.99 < compressor_bits_per_byte(noise, method) < 8.1
        assert compressor_bits_per_byte(b"again " * 9000, method) < 0.1


def test_a_primed_compressor_pays_only_for_what_is_new():
    text = "\n".join(TOPICS[:10]).encode()
    noise = random.Random(0).randbytes(20_000)
    assert compressor_bits_per_byte(text, "xz", primed_with=text) < 0.1
    assert compressor_bits_per_byte(noise, "xz", primed_with=noise) < 0.5


def test_gzip_has_forgotten_what_it_read_32_kilobytes_ago():
    noise = random.Random(0).randbytes(20_000)
    gap = random.Random(1).randbytes(40_000)
    assert compressor_bits_per_byte(noise, "gzip", primed_with=noise) < 0.2
    assert compressor_bits_per_byte(noise, "gzip", primed_with=noise + gap) > 7.9
    assert compressor_bits_per_byte(noise, "xz", primed_with=noise + gap) < 0.5


def test_bad_input_to_a_compressor_is_refused():
    with pytest.raises(ValueError, match="at least one byte"):
        compressor_bits_per_byte(b"")
    with pytest.raises(ValueError, match=r"in \['gzip', 'bz2', 'xz'\]"):
        compressor_bits_per_byte(b"text", "rar")
