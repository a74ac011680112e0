"""Objectives: what is hidden is asked for, what is seen is not, nothing gets lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.training.losses import IGNORE
from minillm.training.objectives import (
    mask_tokens,
    replaced_token_targets,
    span_corruption,
)

MASK, V = 100, 100


def masked(rate=0.15, maskable=None, seed=0):
    tokens = torch.randint(V, (200, 100))
    generator = torch.Generator().manual_seed(seed)
    return tokens, *mask_tokens(tokens, MASK, V, rate, maskable, generator)


def test_fifteen_percent_are_asked_for_and_split_eighty_ten_ten():
    tokens, inputs, targets = masked()
    chosen = targets != IGNORE
    # 20,000 draws: four standard errors are 0.01; of 3,000 chosen, 0.03
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.011)
    hidden = (inputs == MASK)[chosen].float().mean().item()
    kept = (inputs == tokens)[chosen].float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1 + 0.1 / V, abs=0.025)


def test_what_is_not_asked_for_is_as_it_was():
    tokens, inputs, targets = masked()
    assert inputs[targets == IGNORE].equal(tokens[targets == IGNORE])
    assert targets[targets != IGNORE].equal(tokens[targets != IGNORE])


def test_padding_is_never_chosen():
    maskable = torch.zeros(200, 100, dtype=torch.bool)
    maskable[:, :30] = True
    _, inputs, targets = masked(1.0, maskable)
    assert (targets[:, 30:] == IGNORE).all() and (inputs[:, 30:] != MASK).all()
    assert (targets[:, :30] != IGNORE).all()


def test_the_same_generator_hides_the_same_and_the_text_is_not_touched():
    tokens = torch.randint(V, (4, 50))
    before = tokens.clone()
    one, two = (
        mask_tokens(tokens, MASK, V, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert one[0].equal(two[0]) and one[1].equal(two[1]) and tokens.equal(before)


def test_a_rate_is_a_share():
    with pytest.raises(ValueError, match=r"rate must be in 0\.\.1, got 15"):
        mask_tokens(torch.zeros(1, 3).long(), 9, 10, rate=15)


def test_the_paper_s_own_example():
    # Thank you <for inviting> me to your party <last> week
    text = torch.arange(10, 20)
    inputs, targets = span_corruption(text, [(2, 4), (8, 9)], [1, 2, 3])
    assert inputs.tolist() == [10, 11, 1, 14, 15, 16, 17, 2, 19]
    assert targets.tolist() == [1, 12, 13, 2, 18, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), unique=True, max_size=10), st.integers(0, 3))
def test_inputs_and_targets_together_are_the_text(edges, tail):
    edges = sorted(edges)[: len(edges) // 2 * 2]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    text = torch.arange(20 + tail)
    sentinels = list(range(100, 101 + len(spans)))
    inputs, targets = span_corruption(text, spans, sentinels)
    held, current = {}, None
    for token in targets.tolist():
        if token >= 100:
            current = held.setdefault(token, [])
        else:
            current.append(token)
    assert held.pop(100 + len(spans)) == []
    rebuilt = []
    for token in inputs.tolist():
        rebuilt += held[token] if token >= 100 else [token]
    assert rebuilt == text.tolist()


def test_no_span_hides_nothing():
    inputs, targets = span_corruption(torch.arange(3), [], [9])
    assert inputs.tolist() == [0, 1, 2] and targets.tolist() == [9]


@pytest.mark.parametrize(
    "spans",
    [[(2, 2)], [(3, 2)], [(0, 3), (2, 4)], [(3, 4), (0, 1)], [(4, 7)], [(-1, 2)]],
)
def test_spans_that_do_not_fit_are_refused(spans):
    with pytest.raises(ValueError, match="spans must be non-empty, in order"):
        span_corruption(torch.arange(6), spans, [7, 8, 9])


def test_the_last_sentinel_must_be_there():
    with pytest.raises(ValueError, match="sentinels must be at least 2 ids"):
        span_corruption(torch.arange(6), [(1, 2)], [7])


def test_a_generator_that_guesses_right_has_replaced_nothing():
    tokens = torch.tensor([[1, 2, 3, 4]])
    filled = torch.tensor([[1, 2, 9, 4]])  # gaps at 1 and 2, the first guessed right
    assert replaced_token_targets(tokens, filled).tolist() == [[0, 0, 1, 0]]
    with pytest.raises(ValueError, match="corrupted must be of shape"):
        replaced_token_targets(tokens, filled[:, :2])
