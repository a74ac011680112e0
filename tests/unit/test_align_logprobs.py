"""Log-probs of responses: the right tokens, by the distribution that drew them."""

import math

import pytest
import torch

from minillm.alignment.logprobs import (
    PLAIN,
    model_logprobs,
    scored_logprobs,
    sequence_logprobs,
)
from minillm.evaluation.perplexity import token_logprobs
from minillm.model import GPT, GREEDY, GPTConfig, Sampling, sampling_logprobs

CONFIG = GPTConfig(vocab_size=32, n_layer=2, n_head=2, n_embd=16, context=16)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 0, 0]])
RESPONSE = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]).bool()
RULES = {
    "temperature": Sampling(temperature=0.7),
    "top_k": Sampling(top_k=9),
    "top_p": Sampling(temperature=1.3, top_p=0.8),
    "min_p": Sampling(min_p=0.2),
    "penalty": Sampling(temperature=0.9, repetition_penalty=1.5),
}


@pytest.fixture
def model() -> GPT:
    return GPT(CONFIG).double()


def random_logits(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_the_plain_distribution_is_that_of_token_logprobs():
    logits = random_logits(2, 6, 11)
    ours = scored_logprobs(logits, TOKENS)
    assert ours.equal(token_logprobs(logits, TOKENS))


@pytest.mark.parametrize("rule", RULES)
def test_each_token_is_scored_as_the_sampler_would_draw_it(rule):
    logits, mask = random_logits(2, 6, 11), torch.ones(2, 6).bool()
    mask[0, :2] = False
    ours = scored_logprobs(logits, TOKENS, RULES[rule], mask)
    for t in range(5):
        before = (TOKENS[:, : t + 1], mask[:, : t + 1])
        theirs = sampling_logprobs(logits[:, t], RULES[rule], *before)
        expected = theirs.gather(1, TOKENS[:, t + 1, None])[:, 0]
        torch.testing.assert_close(ours[:, t], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_probabilities_of_all_next_tokens_sum_to_one(rule):
    V = 11
    logits = random_logits(1, 3, V).expand(V, -1, -1)
    tokens = torch.tensor([[3, 1, last] for last in range(V)])
    last = scored_logprobs(logits, tokens, RULES[rule])[:, -1]
    assert last.exp().sum().item() == pytest.approx(1.0, rel=1e-12)


def test_the_gradient_with_a_temperature_is_that_of_the_divided_logits():
    logits = random_logits(2, 6, 11)
    sampling = Sampling(temperature=0.7)
    (ours,) = torch.autograd.grad(
        scored_logprobs(logits, TOKENS, sampling)[RESPONSE[:, 1:]].sum(), logits
    )
    logprobs = token_logprobs(logits / 0.7, TOKENS)
    (expected,) = torch.autograd.grad(logprobs[RESPONSE[:, 1:]].sum(), logits)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_scoring_at_temperature_one_what_was_drawn_at_another_is_no_ratio_of_one():
    """M33: by the table there, drawn at 0.6 and scored at 1 against scored at 0.6."""
    z = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    logits = z.expand(3, 2, 3)
    tokens = torch.tensor([[0, 0], [0, 1], [0, 2]])
    drawn = scored_logprobs(logits, tokens, Sampling(temperature=0.6))
    ratio = (scored_logprobs(logits, tokens) - drawn).exp()[:, 0]
    wrong = torch.tensor([0.8796, 3.3368, 6.4993], dtype=torch.float64)
    torch.testing.assert_close(ratio, wrong, rtol=1e-4, atol=0)


def test_a_token_that_the_rules_reject_scores_minus_infinity_and_no_nan_in_gradients():
    logits = torch.tensor([[[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    logits.requires_grad_()
    scored = scored_logprobs(logits, torch.tensor([[0, 2]]), Sampling(top_k=2))
    assert scored.item() == -math.inf
    scored.exp().sum().backward()  # the ratio's numerator
    assert logits.grad.abs().max() == 0


def test_bfloat16_logits_are_scored_in_float32():
    logits = random_logits(2, 6, 11).detach().bfloat16()
    for sampling in (PLAIN, *RULES.values()):
        assert scored_logprobs(logits, TOKENS, sampling).dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
def test_padding_on_either_side_changes_no_logprob(model, rule):
    row = TOKENS[:1]
    alone = model_logprobs(model, row, None, RULES[rule])
    padded = torch.tensor([[0, 0, 0, *row[0].tolist(), 0]])
    mask = torch.tensor([[False] * 3 + [True] * 6 + [False]])
    within = model_logprobs(model, padded, mask, RULES[rule])[:, 3:-1]
    torch.testing.assert_close(within, alone, rtol=1e-9, atol=1e-12)


def test_the_model_stays_in_its_mode_and_gradients_arrive(model):
    for training in (True, False):
        model.train(training)
        model_logprobs(model, TOKENS).sum().backward()
        assert model.training == training
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_a_response_under_a_uniform_model_costs_ln_v_a_token():
    """M35: R tokens of response, whatever the prompt and the padding."""
    logits = torch.zeros(2, 6, 11, dtype=torch.float64)
    total = sequence_logprobs(logits, TOKENS, RESPONSE)
    expected = torch.tensor([-3.0, -2.0], dtype=torch.float64) * math.log(11)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    mean = sequence_logprobs(logits, TOKENS, RESPONSE, average=True)
    torch.testing.assert_close(mean, torch.full_like(mean, -math.log(11)))


def test_the_first_token_of_the_response_counts_and_the_padding_does_not():
    """M34: mask[:, 1:] belongs to the log-probs, not mask[:, :-1]."""
    logits = random_logits(2, 6, 11)
    logprobs = token_logprobs(logits, TOKENS)
    by_hand = torch.stack([logprobs[0, 2:5].sum(), logprobs[1, 1:3].sum()])
    ours = sequence_logprobs(logits, TOKENS, RESPONSE)
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    other = torch.where(torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]).bool(), TOKENS, 10)
    assert sequence_logprobs(logits, other, RESPONSE).equal(ours), "a pad id counted"


def test_only_positions_that_predict_the_response_get_a_gradient():
    logits = random_logits(2, 6, 11)
    total = sequence_logprobs(logits, TOKENS, RESPONSE).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    moved = gradient.abs().sum(-1) > 0
    assert moved.equal(RESPONSE.roll(-1, dims=1))


def test_padding_of_probability_zero_does_not_enter():
    logits = random_logits(2, 6, 11).detach()
    expected = sequence_logprobs(logits, TOKENS, RESPONSE)
    logits[1, 3:, 0] = -torch.inf  # where padding would be predicted
    assert sequence_logprobs(logits, TOKENS, RESPONSE).equal(expected)


def test_an_empty_response_is_certain_but_has_no_mean():
    logits, mask = random_logits(2, 6, 11), RESPONSE.clone()
    mask[1] = False
    assert sequence_logprobs(logits, TOKENS, mask)[1] == 0
    with pytest.raises(ValueError, match="the shortest response must be at least 1"):
        sequence_logprobs(logits, TOKENS, mask, average=True)


def test_doors_say_what_is_wrong():
    logits = random_logits(2, 6, 11)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        sequence_logprobs(logits, TOKENS, RESPONSE.long())
    with pytest.raises(ValueError, match="mask must be given"):
        sequence_logprobs(logits, TOKENS, None)
    with pytest.raises(ValueError, match="nothing predicts the first token"):
        sequence_logprobs(logits, TOKENS, torch.ones_like(RESPONSE))
    for sampling in (PLAIN, RULES["top_k"]):
        with pytest.raises(ValueError, match="logits must be of shape"):
            scored_logprobs(logits[:, :-1], TOKENS, sampling)


def test_greedy_choices_are_certain_and_all_others_impossible():
    logits = random_logits(1, 6, 11)
    best = logits.argmax(-1).roll(1, dims=1)
    assert scored_logprobs(logits, best, GREEDY).abs().max() == 0
    assert scored_logprobs(logits, (best + 1) % 11, GREEDY).max() == -math.inf
