"""Windows: a pure function of the step that shows every token once an epoch."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.batches import Batch, Windows


def rows(windows: Windows, epoch: int) -> list[list[int]]:
    """All rows of one epoch; B = 1, so a step is a row."""
    assert windows.B == 1
    n = windows.rows_per_epoch
    steps = range(epoch * n, (epoch + 1) * n)
    return [windows[step].tokens[0].tolist() for step in steps]


@settings(max_examples=80, deadline=None)
@given(N=st.integers(2, 120), T=st.integers(2, 20), seed=st.integers(0, 5))
def test_an_epoch_makes_every_prediction_once_but_for_less_than_two_rows(N, T, seed):
    # The token at i is its own id, so a row (a, a+1, ...) predicts a+1 and so on.
    # What may miss: one row fewer than fit leaves the cuts room to shift, so both ends
    # together lose less than that row and the remainder: at most 2 (T - 1) - 1.
    if N < T:
        return
    windows = Windows(torch.arange(N), T, B=1, seed=seed)
    for epoch in range(3):
        epoch_rows = rows(windows, epoch)
        assert all(row == list(range(row[0], row[0] + T)) for row in epoch_rows)
        predicted = Counter(token for row in epoch_rows for token in row[1:])
        assert set(predicted.values()) == {1}
        assert 0 not in predicted and max(predicted) < N
        assert len(predicted) >= max(N - 1 - (2 * (T - 1) - 1), T - 1)
        assert max(predicted) - min(predicted) == len(predicted) - 1  # no gap inside


def test_over_some_epochs_every_prediction_is_made():
    windows = Windows(torch.arange(100), T=9, B=1)
    epochs = [rows(windows, epoch) for epoch in range(60)]
    seen = {token for epoch in epochs for row in epoch for token in row[1:]}
    assert seen == set(range(1, 100))


def test_epochs_differ_in_order_and_in_cuts():
    windows = Windows(torch.arange(1000), T=10, B=1)
    first, second = rows(windows, 0), rows(windows, 1)
    assert first != sorted(first)
    assert sorted(first) != sorted(second)  # the cuts
    assert first != second


def test_a_step_is_the_same_batch_whatever_was_asked_before():
    stream = torch.randint(50, (500,))
    one, other = (Windows(stream, T=8, B=4, seed=3) for _ in range(2))
    forwards = [one[step].tokens for step in range(60)]
    backwards = [other[step].tokens for step in reversed(range(60))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert a.equal(b)


def test_a_batch_may_span_two_epochs():
    stream = torch.arange(100)
    single, triple = Windows(stream, T=11, B=1), Windows(stream, T=11, B=3)
    assert single.rows_per_epoch % 3 != 0
    in_threes = torch.cat([triple[step].tokens for step in range(10)])
    assert in_threes.equal(torch.cat([single[step].tokens for step in range(30)]))


def test_the_global_random_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = Windows(torch.arange(99), T=5, B=2)[0].tokens
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert Windows(torch.arange(99), T=5, B=2)[0].tokens.equal(first)


def test_batches_are_new_int64_tensors_and_all_tokens_are_targets():
    stream = torch.arange(60).to(torch.uint16)
    windows = Windows(stream, T=6, B=3)
    batch = windows[0]
    assert isinstance(batch, Batch) and batch.tokens.dtype == torch.int64
    assert batch.mask.dtype == torch.bool and batch.mask.all()
    batch.tokens.zero_()  # who writes into a batch must not write into the stream
    assert windows[0].tokens.any()


def test_the_fingerprint_changes_with_anything_that_changes_a_batch():
    stream = torch.arange(3_000_000) % 251  # longer than one hashed block
    changed = stream.clone()
    changed[2_500_000] += 1
    prints = [
        Windows(s, T, B, seed).fingerprint
        for s, T, B, seed in [
            (stream, 8, 4, 0),
            (changed, 8, 4, 0),
            (stream[:-1], 8, 4, 0),
            (stream.flip(0), 8, 4, 0),
            (stream, 9, 4, 0),
            (stream, 8, 5, 0),
            (stream, 8, 4, 1),
        ]
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_does_not_change_with_how_the_same_ids_are_stored():
    stream = torch.arange(200)
    expected = Windows(stream, 8, 4).fingerprint
    assert Windows(stream.clone(), 8, 4).fingerprint == expected
    assert Windows(stream.to(torch.uint16), 8, 4).fingerprint == expected
    assert Windows(torch.arange(400)[:200], 8, 4).fingerprint == expected
    assert Windows(stream.repeat_interleave(2)[::2], 8, 4).fingerprint == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": 1}, "T must be at least 2, got 1"),
        ({"T": 2.0}, "T must be at least 2"),
        ({"T": 31}, "stream must be at least T = 31 tokens long, got 30"),
        ({"B": 0}, "B must be at least 1"),
        ({"B": True}, "B must be at least 1"),
        ({"seed": -1}, "seed must be an int of at least 0"),
        ({"seed": 0.5}, "seed must be an int of at least 0"),
        ({"stream": torch.zeros(2, 30).long()}, "stream must be a vector of ids"),
        ({"stream": torch.zeros(30)}, "stream must be a vector of ids"),
        ({"stream": list(range(30))}, "stream must be a vector of ids"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_into_rows_is_refused_at_the_door(change, message):
    with pytest.raises(ValueError, match=message):
        Windows(**({"stream": torch.arange(30), "T": 5, "B": 2} | change))


def test_steps_before_the_first_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        Windows(torch.arange(30), T=5, B=2)[-1]
