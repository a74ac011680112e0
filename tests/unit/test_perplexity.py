"""Likelihood: every token scored once, and never averaged the wrong way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minillm.evaluation.perplexity import (
    Likelihood,
    bits_per_byte,
    perplexity,
    score_stream,
    token_logprobs,
)
from minillm.model import GPT, GPTConfig

V, CONTEXT = 23, 12


def spread_model() -> GPT:
    model = GPT(GPTConfig(V, n_layer=1, n_head=2, n_embd=16, context=CONTEXT)).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4)
    return model


MODEL = spread_model()


@torch.no_grad()
def by_definition(stream: torch.Tensor, T: int) -> torch.Tensor:
    """Score token by token: each from the window that the docstring promises."""
    half, N = max(T // 2, 1), len(stream)
    T = min(T, N)
    out = []
    for target in range(1, N):
        start = 0
        while start + T <= target:  # the first window that reaches the target
            start += half
        start = min(start, N - T)
        logits = MODEL(stream[None, start:target])[0, -1]
        out.append(logits.log_softmax(-1)[stream[target]])
    return torch.stack(out)


@settings(max_examples=60, deadline=None)
@given(N=st.integers(2, 50), T=st.integers(2, CONTEXT), B=st.integers(1, 7))
def test_each_token_is_scored_once_with_at_least_half_a_window_before_it(N, T, B):
    stream = torch.randint(V, (N,), generator=torch.Generator().manual_seed(N))
    scores = score_stream(MODEL, stream, T, B)
    assert scores.shape == (N - 1,)
    torch.testing.assert_close(scores, by_definition(stream, T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("N", [2, 5, CONTEXT])
@torch.no_grad()
def test_a_window_over_the_whole_stream_is_one_forward_pass(N):
    stream = torch.randint(V, (N,))
    whole = MODEL(stream[None])[0, :-1].log_softmax(-1)
    expected = whole[torch.arange(N - 1), stream[1:]]
    for T in {None, N, CONTEXT}:
        torch.testing.assert_close(score_stream(MODEL, stream, T), expected)


def test_every_batch_size_gives_the_same_scores():
    stream = torch.randint(V, (100,))
    expected = score_stream(MODEL, stream, B=1)
    for B in (2, 3, 64):
        torch.testing.assert_close(score_stream(MODEL, stream, B=B), expected)


def test_longer_contexts_are_charged_less_by_a_model_that_uses_them():
    # A model that has learned nothing but "the same again" needs one token before it.
    stream = torch.randint(V, (CONTEXT,)).repeat(5)
    assert score_stream(MODEL, stream, T=2).shape == (59,)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_as_before_even_after_an_error(training, monkeypatch):
    model = spread_model().train(training)
    score_stream(model, torch.arange(20))
    assert model.training is training and model.layers[0].training is training
    with pytest.raises(IndexError):
        score_stream(model, torch.tensor([1, V + 1]))  # embedding has no such row
    assert model.training is training and model.layers[0].training is training


def test_streams_of_any_integer_type_give_float32_scores_of_a_float32_model():
    model = GPT(MODEL.config)
    expected = score_stream(model, torch.arange(20))
    assert expected.dtype == torch.float32
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        assert score_stream(model, torch.arange(20).to(dtype)).equal(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stream": torch.tensor([1])}, "stream must be at least 2 tokens long"),
        ({"stream": torch.tensor([])}, "stream must be at least 2 tokens long"),
        ({"T": 1}, "T must be in 2..12"),
        ({"T": 0}, "T must be in 2..12"),
        ({"T": CONTEXT + 1}, "T must be in 2..12"),
    ],
)
def test_impossible_windows_are_refused_at_the_door(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_stream(MODEL, **({"stream": torch.arange(20)} | arguments))
    for B in (0, -1):
        with pytest.raises(RuntimeError, match="split"):
            score_stream(MODEL, torch.arange(20), B=B)


# --- the shift ----------------------------------------------------------------------


def test_position_t_scores_the_token_after_it():
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    logits = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = [
        [logits[b, t].log_softmax(-1)[tokens[b, t + 1]] for t in range(3)]
        for b in range(2)
    ]
    torch.testing.assert_close(token_logprobs(logits, tokens), torch.tensor(expected))


def test_extreme_logits_give_finite_logprobs_and_gradients():
    logits = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]], requires_grad=True)
    logprobs = token_logprobs(logits, torch.tensor([[0, 1]]))
    assert logprobs.tolist() == [[-20000.0]]
    logprobs.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 2, 5), (2, 3, 5), (3, 5)])
def test_logits_that_do_not_belong_to_the_tokens_are_refused(shape):
    with pytest.raises(ValueError, match="logits must be of shape"):
        token_logprobs(torch.zeros(shape), torch.zeros(1, 3, dtype=torch.long))


def test_rows_of_one_token_have_nothing_to_score():
    with pytest.raises(ValueError, match="tokens must be"):
        token_logprobs(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.long))


# --- averages -----------------------------------------------------------------------


def test_perplexity_averages_before_it_exponentiates():
    # M03d: the mean of e^1 and e^3 would be 11.40
    assert perplexity(1.0 + 3.0, 2) == pytest.approx(7.389, abs=1e-3)
    assert perplexity(100 * math.log(V), 100) == pytest.approx(V)


def test_a_hopeless_model_has_infinite_perplexity_not_an_overflow():
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(708.0, 1) == math.exp(708)


def test_bits_per_byte_do_not_depend_on_how_the_bytes_were_cut_into_tokens():
    fine = Likelihood(nats=80.0, n_tokens=100, n_bytes=100)
    coarse = Likelihood(nats=80.0, n_tokens=25, n_bytes=100)
    assert fine.bits_per_byte == coarse.bits_per_byte == 0.8 / math.log(2)
    assert coarse.perplexity == pytest.approx(fine.perplexity**4)
    assert coarse.loss == 3.2


@pytest.mark.parametrize("average", [perplexity, bits_per_byte])
def test_averages_over_nothing_are_refused(average):
    with pytest.raises(ValueError, match="must be positive"):
        average(1.0, 0)
