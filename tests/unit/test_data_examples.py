"""Examples: each row once an epoch, padded where no one looks, the same at any time."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.batches import Batch
from minillm.data.chat import Encoded
from minillm.data.examples import Examples, truncate
from minillm.model import GPT, GPTConfig
from minillm.training import next_token_loss

PAD = 0


def encoded(lengths: list[int], prompt: int = 1) -> list[Encoded]:
    """Example i repeats the id 10 + i; its first ``prompt`` tokens are no targets."""
    return [
        Encoded([10 + i] * n, [False] * prompt + [True] * (n - prompt))
        for i, n in enumerate(lengths)
    ]


LENGTHS = [4, 2, 7, 3, 3]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=12),
    B=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_every_example_comes_once_an_epoch_whole_and_with_its_mask(lengths, B, seed):
    examples, rows = Examples(encoded(lengths), 9, B, PAD, seed), []
    for step in range(3 * len(lengths)):
        tokens, mask = examples[step]
        real = [row[row != PAD] for row in tokens]
        assert tokens.shape[1] == max(map(len, real))  # no wider than its longest
        assert mask.sum(1).tolist() == [len(row) - 1 for row in real]
        assert not mask[:, 0].any() and not mask[tokens == PAD].any()
        rows += [tuple(row.tolist()) for row in real]
    n = len(lengths)
    expected = {(10 + i,) * length for i, length in enumerate(lengths)}
    for epoch in range(3 * B):
        assert Counter(rows[epoch * n : (epoch + 1) * n]) == Counter(expected)


def test_epochs_differ_in_order():
    examples = Examples(encoded([2] * 40), 9, 40, PAD)
    first, second = (examples[step].tokens[:, 0].tolist() for step in range(2))
    assert first != sorted(first) and first != second


def test_a_step_is_the_same_batch_whatever_was_asked_before():
    one, other = (Examples(encoded(LENGTHS), 9, 3, PAD, seed=2) for _ in range(2))
    state = torch.get_rng_state()
    forwards = [one[step] for step in range(20)]
    backwards = [other[step] for step in reversed(range(20))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert a.tokens.equal(b.tokens) and a.mask.equal(b.mask)
    assert torch.get_rng_state().equal(state)


def test_a_batch_is_a_batch_and_writing_into_it_changes_nothing():
    examples = Examples(encoded([4]), 9, 1, PAD)
    batch = examples[0]
    assert isinstance(batch, Batch)
    assert batch.tokens.dtype == torch.int64 and batch.mask.dtype == torch.bool
    batch.tokens.zero_()
    assert examples[0].tokens.eq(10).all()


def test_padding_changes_neither_the_loss_nor_a_gradient():
    """Each row alone, weighed by its targets, equals the padded batch; M21, M31."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, n_layer=2, n_head=2, n_embd=16)).double()
    rows = [Encoded(torch.randint(1, 20, (n,)).tolist(), [False, *[True] * (n - 1)])
            for n in LENGTHS]  # fmt: skip
    n = sum(sum(row.mask) for row in rows)

    def measured(loss):
        model.zero_grad()
        loss.backward()
        return loss.item(), [p.grad.clone() for p in model.parameters()]

    tokens, mask = Examples(rows, 9, len(rows), PAD)[0]
    loss, gradients = measured(next_token_loss(model(tokens), tokens, mask))
    alone = [Examples([row], 9, 1, PAD)[0] for row in rows]
    parts = [next_token_loss(model(b.tokens), *b) * b.mask.sum() / n for b in alone]
    loss_2, gradients_2 = measured(sum(parts))
    assert loss == pytest.approx(loss_2, rel=1e-12)
    for one, two in zip(gradients, gradients_2, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)
    other = next_token_loss(model(tokens.where(tokens != PAD, 13)), tokens, mask)
    assert other.item() == pytest.approx(loss, rel=1e-12)  # whatever the pad is


def test_the_fingerprint_changes_with_anything_that_changes_a_batch():
    base = [Encoded([1, 2, 3], [False, True, True]), Encoded([4, 5], [False, True])]
    moved = [Encoded([1, 2], [False, True]), Encoded([3, 4, 5], [True, False, True])]
    masked = [Encoded([1, 2, 3], [False, False, True]), base[1]]
    changed = [Encoded([1, 2, 4], [False, True, True]), base[1]]
    prints = [
        Examples(rows, 9, B, pad, seed).fingerprint
        for rows, B, pad, seed in [
            (base, 2, 0, 0),
            (base[::-1], 2, 0, 0),
            (base[:1], 2, 0, 0),
            (moved, 2, 0, 0),
            (masked, 2, 0, 0),
            (changed, 2, 0, 0),
            (base, 3, 0, 0),
            (base, 2, 6, 0),
            (base, 2, 0, 1),
        ]
    ]
    assert len(set(prints)) == len(prints)
    assert Examples(base, 5, 2, 0, 0).fingerprint == prints[0]  # a limit, no content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": 1}, "T must be at least 2, got 1"),
        ({"B": 0}, "B must be at least 1"),
        ({"seed": -1}, "seed must be an int of at least 0"),
        ({"pad": -1}, "pad must be a token id, got -1; pass tokenizer.pad"),
        ({"encoded": []}, "encoded must be at least 1 example"),
        ({"T": 6}, r"length of encoded\[2\] must be at most T = 6, got 7"),
        ({"encoded": [([1, 2], [True])]}, r"mask of encoded\[0\] must be 2 truth"),
        ({"encoded": encoded([3], prompt=3)}, "must be at least 1 after its first"),
        ({"encoded": [([1, 2], [True, False])]}, "must be at least 1 after its first"),
        ({"encoded": [([], [])]}, "must be at least 1 after its first"),
    ],
    ids=str,
)
def test_examples_that_teach_nothing_or_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Examples(**({"encoded": encoded(LENGTHS), "T": 9, "B": 2, "pad": PAD} | change))


def test_a_cut_example_loses_its_end_and_keeps_no_other():
    long = Encoded([5, 6, 7, 8], [False, False, True, True])
    assert truncate(long, 3) == ([5, 6, 7], [False, False, True])
    assert truncate(long, 4) == truncate(long, 99) == long
    assert Examples([truncate(long, 3)], 3, 1, PAD)[0].mask.sum() == 1
    with pytest.raises(ValueError, match="at least 1 after its first token"):
        Examples([truncate(long, 2)], 3, 1, PAD)


def test_steps_before_the_first_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        Examples(encoded(LENGTHS), 9, 2, PAD)[-1]
