"""The rules of sampling, at their edges; transformers' twins are in tests/parity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.model import GREEDY, Sampling, sampling_logprobs
from minillm.model.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

PROBS = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
LOGITS = PROBS.log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.01, [0]), (0.4, [0]), (0.6, [0, 1]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_token_that_crosses_p(p, expected):
    # M14a would keep nothing at 0.4 and {0} at 0.6
    assert kept(keep_top_p(LOGITS, p)) == expected


def test_top_p_puts_every_verdict_back_where_its_token_was():
    order = torch.tensor([2, 0, 3, 1])  # M14b: without un-sorting the wrong ones go
    assert kept(keep_top_p(LOGITS[:, order], 0.6)) == [1, 3]
    rows = torch.cat([LOGITS, LOGITS[:, order]])
    assert keep_top_p(rows, 0.6).isfinite().tolist() == [
        [True, True, False, False],
        [False, True, False, True],
    ]


def test_top_p_of_one_keeps_even_what_float32_rounds_away():
    logits = torch.randn(4, 5000) * 10  # thousands of tokens beyond the 24th bit
    assert keep_top_p(logits, 1.0).equal(logits)
    assert sampling_logprobs(logits, Sampling(top_p=1.0)).isfinite().all()


def test_top_p_cuts_equal_tokens_in_the_order_of_the_vocabulary():
    assert kept(keep_top_p(torch.zeros(1, 4), 0.5)) == [0, 1]


def test_top_k_keeps_all_tokens_that_tie_with_the_last_one():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert kept(keep_top_k(logits, 2)) == [0, 2, 3]
    assert kept(keep_top_k(logits, 1)) == [0]


def test_top_k_larger_than_the_vocabulary_keeps_it_all():
    assert keep_top_k(LOGITS, 4).equal(LOGITS)
    assert keep_top_k(LOGITS, 1000).equal(LOGITS)


def test_min_p_keeps_what_is_within_a_factor_of_the_best():
    assert kept(keep_min_p(LOGITS, 0.59)) == [0, 1]
    assert kept(keep_min_p(LOGITS, 0.61)) == [0]
    assert kept(keep_min_p(LOGITS, 1.0)) == [0]
    assert keep_min_p(LOGITS, 0.0).equal(LOGITS)
    assert kept(keep_min_p(torch.zeros(1, 3), 1.0)) == [0, 1, 2]


def test_the_repetition_penalty_never_makes_a_token_more_probable():
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    tokens = torch.tensor([[0, 1, 1, 2]])
    assert penalize_repetition(logits, tokens, None, 2.0).tolist() == [[1, -4, 0, 1]]
    assert penalize_repetition(logits, tokens, None, 0.5).tolist() == [[4, -1, 0, 1]]


def test_the_repetition_penalty_ignores_padding_and_other_rows():
    logits = torch.ones(2, 4)
    tokens = torch.tensor([[3, 3, 1], [0, 2, 0]])
    mask = torch.tensor([[False, False, True], [True, True, False]])
    expected = [[1, 0.5, 1, 1], [0.5, 1, 0.5, 1]]
    assert penalize_repetition(logits, tokens, mask, 2.0).tolist() == expected


def test_the_repetition_penalty_asks_for_the_sequence():
    with pytest.raises(ValueError, match="tokens must be given for the penalty"):
        sampling_logprobs(LOGITS, Sampling(repetition_penalty=1.2))


def test_temperature_divides_before_anything_is_filtered():
    # M14c. Hotter is flatter: at 2 three tokens are needed for p = 0.6, not two.
    assert kept(sampling_logprobs(LOGITS, Sampling(temperature=2.0, top_p=0.6))) == [
        0, 1,
    ]  # fmt: skip
    assert kept(sampling_logprobs(LOGITS, Sampling(temperature=4.0, top_p=0.6))) == [
        0, 1, 2,
    ]  # fmt: skip
    cold = sampling_logprobs(LOGITS, Sampling(temperature=0.5)).exp()
    torch.testing.assert_close(cold, PROBS**2 / (PROBS**2).sum())


def test_temperature_zero_is_the_first_of_the_best_tokens():
    logits = torch.tensor([[1.0, 3.0, 3.0], [-5.0, -7.0, -6.0]])
    assert sampling_logprobs(logits, GREEDY).exp().tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e38])
def test_extreme_logits_and_temperatures_give_a_distribution(temperature, scale):
    logits = scale * torch.tensor([[1.0, -1.0, 0.5, 1.0]])
    logprobs = sampling_logprobs(logits, Sampling(temperature=temperature, top_p=0.9))
    assert not logprobs.isnan().any()
    assert logprobs.exp().sum().item() == pytest.approx(1.0)
    assert logprobs[0, 0] == logprobs[0, 3] == logprobs.max()


def test_forbidden_tokens_stay_forbidden_through_every_rule():
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    rules = Sampling(0.7, top_k=3, top_p=0.99, min_p=0.01, repetition_penalty=1.3)
    out = sampling_logprobs(logits, rules, torch.tensor([[1, 2]]))
    assert kept(out) == [0, 2]
    assert kept(sampling_logprobs(logits, GREEDY)) == [2]


def test_bfloat16_logits_are_summed_in_float32():
    # In bfloat16 a running sum of 1/2000 stops at 1/8: top_p would keep everything.
    logits = torch.zeros(1, 2000, dtype=torch.bfloat16)
    logprobs = sampling_logprobs(logits, Sampling(top_p=0.5))
    assert logprobs.dtype == torch.float32
    assert len(kept(logprobs)) == pytest.approx(1000, abs=1)
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12),
    temperature=st.floats(0.01, 5),
    k=st.none() | st.integers(1, 15),
    p=st.none() | st.floats(0.01, 1),
    m=st.none() | st.floats(0, 1),
)
def test_any_rules_leave_a_distribution_that_keeps_the_best_token(
    logits, temperature, k, p, m
):
    logits = torch.tensor([logits], dtype=torch.float64)
    rules = Sampling(temperature, k, p, m)
    logprobs = sampling_logprobs(logits, rules)
    assert logprobs.exp().sum().item() == pytest.approx(1.0)
    assert logprobs.max() == logprobs[0, logits.argmax()]
    survivors = logprobs.isfinite()
    raw = logits / temperature  # among those that stay, odds are as before
    difference = (raw - logprobs)[survivors]
    torch.testing.assert_close(
        difference, difference[:1].expand_as(difference), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or at least 1e-6, got -0.1"),
        ({"temperature": 1e-40}, "temperature"),  # 0 in float32
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k must be an int of at least 1"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ],
)
def test_rules_out_of_range_are_refused_by_name(rules, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**rules)


def test_draws_have_the_probabilities_they_were_drawn_from():
    p = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    n = 200_000
    drawn = draw(p.log().expand(n, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6)
    assert counts[1] == counts[5] == 0  # impossible means never, at the end too
    # Five standard deviations of a binomial count.
    assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()


def test_logprobs_need_not_sum_to_one_to_be_drawn_from():
    logprobs = torch.tensor([[-100.0, -100.0 + math.log(3.0)]]).expand(40_000, -1)
    share = draw(logprobs, torch.Generator().manual_seed(0)).double().mean()
    assert share == pytest.approx(0.75, abs=0.011)  # five standard deviations
