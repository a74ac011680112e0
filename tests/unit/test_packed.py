"""Rows of whole documents: nothing of a row's beginning betrays what comes."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.batches import Batch
from minillm.data.packed import Rows, pack

EOT = 0


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens say which document they are of, and where they stand."""
    return [[100 * i + k for k in range(1, n + 1)] for i, n in enumerate(lengths)]


# --- packing ------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=60), T=st.integers(2, 20)
)
def test_rows_are_documents_unbroken_until_the_cut_and_what_it_loses_is_gone(
    lengths, T
):
    documents = numbered(lengths)
    left = iter(documents)
    try:
        rows = pack(documents, EOT, T).tolist()
    except ValueError:
        rows = []
    for row in rows:
        expected = [EOT]
        while len(expected) < T:  # the next document is always one not seen before
            expected += [*next(left), EOT]
        assert row == expected[:T]
    assert sum(len(d) + 1 for d in left) < T - 1  # what is left fills no row


def test_rows_do_not_open_with_long_documents_more_often_than_text_has_them():
    # A tenth of all documents is long, and nearly all that are cut are long. Each row
    # opens with an independent document, so the count is binomial; 4 deviations.
    dice = Random("lengths")
    documents = [[2] * 60 if dice.random() < 0.1 else [1] * 2 for _ in range(20_000)]
    rows = pack(documents, EOT, T=32)
    R, p = len(rows), sum(len(d) == 60 for d in documents) / len(documents)
    assert R > 1000
    long = (rows[:, 1] == 2).sum().item()
    assert abs(long - R * p) < 4 * (R * p * (1 - p)) ** 0.5
    # Nor do later places of a row: every document begins in exactly one.
    begins = (rows[:, :-1] == EOT) & (rows[:, 1:] != EOT)
    begun = Counter(rows[:, 1:][begins].tolist())
    assert begun[1] + begun[2] > 0.99 * len(documents)
    assert begun[2] / begun.total() == pytest.approx(p, abs=0.001)


@pytest.mark.parametrize(
    ("lengths", "T", "expected"),
    [
        ([3], 5, [[0, 1, 2, 3, 0]]),  # fills the row to the last place
        ([3], 4, [[0, 1, 2, 3]]),  # only its end is cut off
        ([3], 2, [[0, 1]]),
        ([0, 0], 3, [[0, 0, 0]]),  # empty documents are only their ends
        ([1, 1, 1], 4, [[0, 1, 0, 101]]),
    ],
)
def test_documents_that_just_fit_and_just_do_not(lengths, T, expected):
    assert pack(numbered(lengths), EOT, T).tolist() == expected


@pytest.mark.parametrize("T", [1, 0, -3, 2.0, True])
def test_rows_of_less_than_two_tokens_are_refused(T):
    with pytest.raises(ValueError, match="T must be at least 2"):
        pack([[1, 2]], EOT, T)


@pytest.mark.parametrize("documents", [[], [[1, 2]]])
def test_too_little_text_for_a_single_row_is_refused(documents):
    with pytest.raises(ValueError, match="documents must be enough for a row of 8"):
        pack(documents, EOT, 8)


# --- batches ------------------------------------------------------------------------


def order(rows: Rows, epoch: int) -> list[int]:
    """The first ids of one epoch's rows; B = 1, so that a step is a row."""
    R = len(rows.tokens)
    return [
        rows[step].tokens[0, 0].item() for step in range(epoch * R, (epoch + 1) * R)
    ]


def test_every_epoch_is_a_permutation_and_no_two_are_the_same():
    rows = Rows(torch.arange(40).view(20, 2), B=1)
    epochs = [order(rows, epoch) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(0, 40, 2)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 5
    assert epochs[0] != sorted(epochs[0])
    assert order(Rows(rows.tokens, B=1, seed=1), 0) != epochs[0]


def test_a_batch_may_span_epochs_even_several():
    tokens = torch.arange(10).view(5, 2)
    singles = torch.cat([Rows(tokens, B=1)[step].tokens for step in range(24)])
    for B in (3, 12):
        steps = [Rows(tokens, B)[step].tokens for step in range(24 // B)]
        assert torch.cat(steps).equal(singles)


def test_a_step_is_the_same_batch_whatever_was_asked_before():
    tokens = torch.randint(50, (30, 4))
    one, other = Rows(tokens, B=4, seed=3), Rows(tokens, B=4, seed=3)
    forwards = [one[step].tokens for step in range(60)]
    backwards = [other[step].tokens for step in reversed(range(60))][::-1]
    assert all(a.equal(b) for a, b in zip(forwards, backwards, strict=True))
    assert any(not a.equal(b) for a, b in pairwise(forwards))


def test_the_global_random_generator_is_neither_read_nor_moved():
    rows, state = Rows(torch.arange(40).view(20, 2), B=4), torch.get_rng_state()
    first = rows[0].tokens
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert Rows(rows.tokens, B=4)[0].tokens.equal(first)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16, torch.int64])
def test_batches_are_new_int64_tensors_and_all_tokens_are_targets(dtype):
    rows = Rows(torch.arange(1, 13).view(4, 3).to(dtype), B=2)
    batch = rows[0]
    assert isinstance(batch, Batch) and batch.tokens.dtype == torch.int64
    assert batch.mask.dtype == torch.bool and batch.mask.all()
    assert batch.mask.shape == batch.tokens.shape == (2, 3)
    batch.tokens.zero_()  # who writes into a batch must not write into the rows
    assert rows[0].tokens.all()


def test_the_fingerprint_changes_with_anything_that_changes_a_batch():
    tokens = torch.arange(24).view(6, 4)
    changed = tokens.clone()
    changed[5, 3] += 1
    prints = [
        Rows(t, B, seed).fingerprint
        for t, B, seed in [
            (tokens, 2, 0),
            (changed, 2, 0),
            (tokens[:-1], 2, 0),
            (tokens.flip(0), 2, 0),
            (tokens.view(4, 6), 2, 0),
            (tokens, 3, 0),
            (tokens, 2, 1),
        ]
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_does_not_change_with_how_the_same_ids_are_stored():
    tokens = torch.arange(24).view(6, 4)
    expected = Rows(tokens, B=2).fingerprint
    for same in (tokens.int(), tokens.to(torch.uint16), tokens.T.contiguous().T):
        assert Rows(same, B=2).fingerprint == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.arange(6)}, "tokens must be a matrix of ids"),
        ({"tokens": torch.zeros(2, 3)}, "tokens must be a matrix of ids"),
        ({"tokens": [[1, 2], [3, 4]]}, "tokens must be a matrix of ids"),
        ({"tokens": torch.zeros(0, 3).long()}, "tokens must be a matrix of ids"),
        ({"tokens": torch.zeros(3, 0).long()}, "tokens must be a matrix of ids"),
        ({"tokens": torch.zeros(3, 1).long()}, "T must be at least 2, got 1"),
        ({"B": 0}, "B must be at least 1"),
        ({"B": 2.0}, "B must be at least 1"),
        ({"seed": -1}, "seed must be an int of at least 0"),
    ],
    ids=str,
)
def test_what_makes_no_batches_is_refused_at_the_door(change, message):
    with pytest.raises(ValueError, match=message):
        Rows(**({"tokens": torch.ones(3, 4).long(), "B": 2} | change))


def test_steps_before_the_first_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        Rows(torch.ones(3, 4).long(), B=2)[-1]
