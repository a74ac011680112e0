"""Shares are exact, steps can be repeated, no example comes twice too early."""

from collections import Counter

import numpy as np
import pytest
import torch

from minillm.data.chat import Encoded
from minillm.finetuning import finetune, sft_config
from minillm.finetuning.mixing import Mixture, deal, mixing_shares
from minillm.model import GPT, GPTConfig

SIZES = (40, 12, 5)


def example(task: int, i: int) -> Encoded:
    """It says who it is: task first, then number; lengths differ."""
    more = i % 3
    return Encoded([task, i + 1, *[60] * more], [False, True, *[True] * more])


def mixture(sizes=SIZES, B=8, **settings) -> Mixture:
    tasks = [[example(k, i) for i in range(n)] for k, n in enumerate(sizes, 1)]
    return Mixture(tasks, T=8, B=B, pad=0, **settings)


def rows_of(mixed: Mixture, n: int) -> list[tuple[int, int]]:
    """Task and number of the first n rows."""
    steps = range(n // mixed.B)
    return [tuple(row[:2].tolist()) for s in steps for row in mixed[s].tokens]


def test_the_shares_are_those_of_the_papers():
    n = np.array(SIZES)
    for alpha in (0, 0.3, 0.5, 1):
        expected = n**alpha / (n**alpha).sum()
        assert mixing_shares(SIZES, alpha) == pytest.approx(expected, rel=1e-12)
    assert mixing_shares(SIZES, 0) == pytest.approx([1 / 3] * 3)
    assert mixing_shares(SIZES, 1) == pytest.approx(n / n.sum())
    capped = np.minimum(n, 10)
    assert mixing_shares(SIZES, cap=10) == pytest.approx(capped / capped.sum())
    assert mixing_shares(SIZES, cap=5) == pytest.approx([1 / 3] * 3)
    assert mixing_shares(SIZES, cap=10**9) == mixing_shares(SIZES)


def test_the_smaller_alpha_the_larger_is_the_smallest_task():
    smallest = [mixing_shares(SIZES, alpha)[-1] for alpha in (1, 0.7, 0.3, 0)]
    assert smallest == sorted(smallest)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_no_epoch_is_more_than_a_row_off_and_the_mean_is_exact(alpha):
    shares, N = tuple(mixing_shares(SIZES, alpha)), 57
    counts = []
    for epoch in range(12):
        tasks, _ = deal(shares, N, 0, epoch)
        counts.append(np.bincount(tasks, minlength=3))
        assert (abs(counts[-1] - N * np.array(shares)) < 1).all()
        assert counts[-1].sum() == N
    first = [
        np.bincount(deal(shares, N, seed, 0)[0], minlength=3) for seed in range(200)
    ]
    error = abs(np.mean(first, axis=0) - N * np.array(shares))
    assert (error < 4 * 0.5 / 200**0.5).all()  # a count is one of two neighbours


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_within_a_task_every_example_comes_once_before_any_comes_twice(alpha):
    rows = rows_of(mixture(alpha=alpha), 57 * 8)
    for task, size in enumerate(SIZES, 1):
        own = [number for which, number in rows if which == task]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size
        assert max(Counter(own).values()) - min(Counter(own).values()) <= 1


def test_in_proportion_an_epoch_has_every_example_once():
    rows = rows_of(mixture(B=1, alpha=1), 57)
    assert len(set(rows)) == 57


def test_a_step_is_a_function_of_its_number():
    one, other = mixture(alpha=0.3), mixture(alpha=0.3)
    last = one[40]
    for step in (0, 7, 40, 3):
        assert one[step].tokens.equal(other[step].tokens)
        assert one[step].mask.equal(other[step].mask)
    assert last.tokens.equal(other[40].tokens)
    assert not one[0].tokens.equal(mixture(alpha=0.3, seed=1)[0].tokens)


def test_the_order_changes_with_the_epoch_and_tasks_are_spread():
    first, second = (deal((0.5, 0.5), 100, 0, epoch)[0] for epoch in (0, 1))
    assert (first != second).any()
    assert 0 < first[:20].sum() < 20


def test_padding_is_no_target_and_tokens_keep_their_mask():
    tokens, mask = mixture(B=30)[0]
    assert not mask[tokens == 0].any() and not mask[:, 0].any()
    assert mask[:, 1:].equal(tokens[:, 1:] != 0)


def test_the_fingerprint_knows_what_decides_a_batch():
    changes = [{"alpha": 0.5}, {"cap": 7}, {"seed": 1}, {"B": 4}, {"sizes": (40, 12)}]
    prints = {mixture(**change).fingerprint for change in [{}, *changes]}
    assert len(prints) == 6 and mixture().fingerprint in prints


def test_a_model_is_trained_on_it_as_on_examples():
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16, context=8))
    mixed = mixture(alpha=0)
    config = sft_config(mixed, epochs=1)
    assert config.steps == 8
    losses = finetune(model, mixed, config, progress=False).column("loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sizes": ()}, "at least one task"),
        ({"sizes": (3, 0)}, "size must be"),
        ({"alpha": -0.1}, "alpha must be in 0..1"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"cap": 0}, "cap must be"),
        ({"B": 0}, "B must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        mixture(**settings)


def test_an_example_without_a_target_is_refused_whatever_task_it_is_of():
    good, bad = Encoded([1, 2], [False, True]), Encoded([1, 2], [False, False])
    with pytest.raises(ValueError, match=r"targets of encoded\[1\]"):
        Mixture([[good], [bad]], T=4, B=1, pad=0)
