"""Rollouts: what was sampled, where it stands, and how probable it was."""

import pytest
import torch
from rigged import Rigged

from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.data import Tokenizer
from minillm.model import GPT, GREEDY, GPTConfig, Sampling

CONFIG = GPTConfig(vocab_size=32, n_layer=2, n_head=2, n_embd=16, context=24)
PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]
STOP, PAD = 3, 0


@pytest.fixture
def model() -> GPT:
    model = GPT(CONFIG).double()
    for p in model.parameters():
        p.data *= 6  # far from uniform, or temperature would hardly matter
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(model, sampling=None, n=12, **options) -> Rollouts:
    rules = sampling or Sampling()
    options = {"stop": STOP, "pad": PAD, "generator": seeded()} | options
    return sample_rollouts(model, PROMPTS * 4, n, rules, **options)


def scripted(*script: int) -> Rigged:
    """A model that says the script after a prompt of any length, each with p = 0.9."""

    def logprobs(before: tuple) -> torch.Tensor:
        said = sum(1 for token in before if token < 5)
        p = torch.full((32,), 0.1 / 31, dtype=torch.float64)
        p[script[min(said, len(script) - 1)]] = 0.9
        return p.log()

    return Rigged(logprobs, 32)


def test_prompts_stand_left_of_one_column_and_responses_right_of_it(model):
    made = sample(model)
    for row, prompt in enumerate(PROMPTS * 4):
        start = 4 - len(prompt)
        assert made.tokens[row, start:4].tolist() == prompt
        assert not made.real[row, :start].any() and made.real[row, start:4].all()
        assert not made.actions[row, :4].any()
    assert made.actions[:, 4].all()
    assert made.actions[:, 4:].equal(made.real[:, 4:])


def test_the_stop_token_is_an_action_and_nothing_behind_it_is():
    rules = Sampling(top_k=1)
    made = sample_rollouts(scripted(1, 2, STOP, 4), PROMPTS, 9, rules, STOP, PAD)
    assert made.completions() == [[1, 2, STOP]] * 3
    assert made.finished.all()
    assert made.actions[:, 4:].tolist() == [[True] * 3] * 3  # all stopped: no more made


def test_rows_that_stop_early_are_padded_and_the_padding_is_no_action(model):
    made = sample(model, n=20)
    ends = made.actions.sum(dim=1)
    assert ends.min() < ends.max(), "the fixture should have unequal responses"
    for row, n in enumerate(ends):
        behind = slice(4 + int(n), None)
        assert (made.tokens[row, behind] == PAD).all()
        assert not made.real[row, behind].any()
        stopped = made.tokens[row, 3 + int(n)] == STOP
        assert stopped == made.finished[row]
    assert made.finished.any()


def test_without_a_stop_token_nothing_finishes(model):
    made = sample(model, stop=None, n=5)
    assert not made.finished.any()
    assert (made.actions.sum(dim=1) == 5).all()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.5, top_k=5),
        Sampling(top_p=0.7),
        Sampling(min_p=0.3),
        Sampling(repetition_penalty=1.4),
    ],
    ids=str,
)
def test_before_the_first_update_every_ratio_is_one_and_its_gradient_is_not_zero(
    model, sampling
):
    made = sample(model, sampling)
    acts = made.actions[:, 1:]
    now = model_logprobs(model, made.tokens, made.real, sampling)
    ratio = (now - made.logprobs)[acts].exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-12, atol=0)
    assert not made.logprobs.requires_grad
    ratio.sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling(top_k=3)])
def test_scored_by_another_distribution_ratios_differ_from_one(model, sampling):
    made = sample(model, sampling)
    acts = made.actions[:, 1:]
    wrong = (model_logprobs(model, made.tokens, made.real) - made.logprobs)[acts].exp()
    assert (wrong - 1).abs().mean() > 0.1
    assert wrong.log().mean() < -0.05  # as if the policy had moved before any update


def test_after_an_update_ratios_move_and_the_old_logprobs_stay(model):
    made = sample(model)
    old = made.logprobs.clone()
    with torch.no_grad():
        model.lm_head.weight += 0.1 * torch.randn_like(model.lm_head.weight)
    ratio = (model_logprobs(model, made.tokens, made.real) - made.logprobs).exp()
    assert (ratio[made.actions[:, 1:]] - 1).abs().mean() > 1e-3
    assert made.logprobs.equal(old)


def test_logprobs_are_zero_where_there_is_no_action(model):
    made = sample(model)
    assert (made.logprobs[~made.actions[:, 1:]] == 0).all()
    assert (made.logprobs[made.actions[:, 1:]] < 0).all()


def test_logprobs_are_those_of_each_row_alone(model):
    made = sample(model, Sampling(temperature=0.8))
    for row, prompt in enumerate(PROMPTS):
        said = made.completions()[row]
        alone = model_logprobs(
            model, torch.tensor([prompt + said]), None, Sampling(temperature=0.8)
        )[0, len(prompt) - 1 :]
        within = made.logprobs[row][made.actions[row, 1:]]
        torch.testing.assert_close(within, alone, rtol=1e-9, atol=1e-12)


def test_what_is_sampled_has_the_probabilities_that_are_kept():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    model = Rigged(lambda before: p.log(), 4)
    rules = Sampling(temperature=0.5, top_k=3)
    made = sample_rollouts(model, [[1]] * 4000, 1, rules, generator=seeded())
    kept = torch.tensor([0.25, 0.09, 0.0225, 0.0], dtype=torch.float64)
    kept = kept / kept.sum()
    counts = made.tokens[:, 1].bincount(minlength=4) / 4000
    assert (counts - kept).abs().max() < 4 * (0.25 / 4000) ** 0.5
    torch.testing.assert_close(made.logprobs[:, 0].exp(), kept[made.tokens[:, 1]])


def test_the_same_seed_says_the_same(model):
    a, b = sample(model), sample(model)
    assert a.tokens.equal(b.tokens) and a.logprobs.equal(b.logprobs)
    assert not a.tokens.equal(sample(model, generator=seeded(1)).tokens)


def test_the_mode_of_the_model_is_as_before_and_both_passes_ran_without_dropout():
    for training in (True, False):
        model = scripted(1, STOP).train(training)
        sample_rollouts(model, PROMPTS, 4, stop=STOP)
        assert model.training == training
        assert not any(model.modes)


def test_a_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(ValueError, match="at most 24, the model's context"):
        sample_rollouts(model, [[5] * 20], 5)
    assert sample_rollouts(model, [[5] * 20], 4).tokens.shape == (1, 24)


def test_greedy_sampling_is_refused(model):
    with pytest.raises(ValueError, match="greedy choices have no odds"):
        sample_rollouts(model, PROMPTS, 4, GREEDY)


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []], [[99]]])
def test_prompts_that_are_none_are_refused(model, prompts):
    with pytest.raises(ValueError, match="prompts must be"):
        sample_rollouts(model, prompts, 4)


def test_texts_are_the_words_without_prompt_padding_and_stop():
    tokenizer = Tokenizer(merges=())
    hi, stop = tokenizer.encode("hi"), tokenizer.eot
    tokens = torch.tensor([[0, 65, *hi, stop], [65, 65, *hi[:1], stop, 0]])
    real = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    actions = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    made = Rollouts(tokens, real, actions, torch.zeros(2, 4), stop)
    assert made.texts(tokenizer) == ["hi", "h"]


def test_rollouts_that_contradict_themselves_are_refused():
    tokens, real = torch.zeros(2, 3).long(), torch.ones(2, 3).bool()
    actions = torch.tensor([[0, 1, 1], [0, 0, 1]]).bool()
    fine = {"tokens": tokens, "real": real, "actions": actions}
    fine |= {"logprobs": torch.zeros(2, 2)}
    assert Rollouts(**fine).finished.tolist() == [False, False]
    wrong = [
        ({"logprobs": torch.zeros(2, 3)}, "logprobs must be of shape"),
        ({"actions": torch.ones(2, 3).bool()}, "actions must be True at real"),
        ({"real": ~actions}, "actions must be True at real"),
        ({"actions": actions.long()}, "mask must be a bool"),
        ({"real": real[:, :2]}, "mask must be a bool"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            Rollouts(**fine | change)


def test_a_token_at_the_edge_of_the_truncation_is_no_action_where_passes_disagree():
    """The second pass rounds in another way: here it rejects what the first drew."""

    class Wavering(Rigged):
        def hidden(self, tokens, mask=None, cache=None):
            logits = super().hidden(tokens, mask, cache)
            return logits if cache else logits.flip(-1)

        forward = hidden

    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    model = Wavering(lambda before: p.log(), 4)
    made = sample_rollouts(model, [[1]] * 8, 1, Sampling(top_k=3), generator=seeded())
    assert (made.tokens[:, 1] == 0).any()
    assert made.logprobs.isfinite().all()
    assert made.actions[:, 1].equal(made.tokens[:, 1] != 0)
