"""Reward models: where the score is read, what is learned, what is worth believing."""

import math
from itertools import product

import pytest
import torch

from minillm.alignment.choices import (
    bradley_terry_loss,
    centring_loss,
    pair_accuracy,
)
from minillm.alignment.reward_fitting import fit_head
from minillm.alignment.reward_judging import (
    choice_confidence,
    ensemble_reward,
    evaluate_reward_model,
    true_gain,
)
from minillm.alignment.reward_model import RewardModel, last_token_index
from minillm.alignment.reward_pairs import (
    Pair,
    encode_pairs,
    opening_ids,
    pad_right,
    ranking_to_pairs,
    response_ids,
    score_pairs,
)
from minillm.alignment.reward_training import RewardConfig, train_reward_model
from minillm.alignment.surprise import FLOOR, response_mask, surprises
from minillm.data import Tokenizer, stop_token
from minillm.evaluation.asking import calibration_error
from minillm.model import GPT, GPTConfig
from minillm.world import World
from minillm.world.instructions import preferences
from minillm.world.preferences import Annotator, Preference
from minillm.world.questions import Question

CONFIG = GPTConfig(vocab_size=32, n_layer=2, n_head=2, n_embd=16, context=16)
TOKENIZER = Tokenizer(merges=())


@pytest.fixture
def model() -> RewardModel:
    return RewardModel(GPT(CONFIG)).double()


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_the_last_token_is_found_on_whichever_side_the_padding_is():
    """M24: with the ids of its fixture, where token 2 ends turns and 0 is padding."""
    ids = torch.tensor([[5, 2, 7, 9, 2, 0, 0], [5, 6, 2, 0, 0, 0, 0]])
    assert last_token_index(ids != 0).tolist() == [4, 2]
    left = torch.tensor([[0, 0, 5, 6, 2]]) != 0
    assert last_token_index(left).tolist() == [4]
    assert (left.sum(1) - 1).tolist() == [2], "what counting tokens would find"
    both = torch.tensor([[0, 5, 6, 0]]) != 0
    assert last_token_index(both).tolist() == [2]
    full = torch.ones(1, 3).bool()
    assert last_token_index(full).tolist() == [2]


def test_a_row_of_padding_has_no_last_token():
    with pytest.raises(ValueError, match="leave out rows that are padding only"):
        last_token_index(torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        last_token_index(torch.ones(1, 2))


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("right", [0, 4])
def test_padding_of_any_width_and_id_changes_no_reward(model, left, right):
    ids = [5, 6, 7, 8]
    alone = model(torch.tensor([ids]), torch.ones(1, 4).bool())
    for pad in (0, 8):
        tokens = torch.tensor([[pad] * left + ids + [pad] * right])
        mask = torch.tensor([[False] * left + [True] * 4 + [False] * right])
        torch.testing.assert_close(model(tokens, mask), alone, rtol=1e-10, atol=1e-12)


def test_the_reward_sees_the_last_token_and_all_before_it(model):
    tokens, mask = torch.tensor([[5, 6, 7, 8, 0]]), torch.tensor([[True] * 4 + [False]])
    before = model(tokens, mask)
    for place in range(4):
        other = tokens.clone()
        other[0, place] = 9
        assert (model(other, mask) - before).abs() > 1e-6, place


def test_gradients_reach_every_parameter_of_head_and_trunk(model):
    tokens = torch.randint(1, 32, (4, 6))
    model(tokens, torch.ones(4, 6).bool()).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_an_encoder_is_refused():
    with pytest.raises(ValueError, match="causal must be True"):
        RewardModel(GPT(GPTConfig(32, 1, 2, n_embd=16, causal=False)))


def test_the_loss_has_the_values_worked_out_by_hand():
    """M25: equal, right by 2, wrong by 2, and the mean of losses."""
    assert bradley_terry_loss(row(1.0), row(1.0)).item() == pytest.approx(math.log(2))
    right = bradley_terry_loss(row(3.0), row(1.0)).item()
    assert right == pytest.approx(0.126928, rel=1e-5)
    wrong = bradley_terry_loss(row(1.0), row(3.0)).item()
    assert wrong == pytest.approx(2.126928, rel=1e-6)
    mixed = bradley_terry_loss(row(2.0, -2.0), row(0.0, 0.0)).item()
    assert mixed == pytest.approx(1.126928, rel=1e-6), "not the loss of the mean"


def test_only_the_difference_counts():
    a, b = torch.randn(2, 5, dtype=torch.float64)
    expected = bradley_terry_loss(a, b)
    torch.testing.assert_close(bradley_terry_loss(a + 100, b + 100), expected)
    assert (bradley_terry_loss(2 * a, 2 * b) - expected).abs() > 1e-3


def test_the_gradient_is_the_probability_of_the_other_choice():
    a, b = row(0.5, -1.0, 2.0), row(0.0, 1.0, 2.0)
    bradley_terry_loss(a, b).backward()
    surprise = (b - a).detach().sigmoid() / 3
    torch.testing.assert_close(a.grad, -surprise, rtol=1e-12, atol=0)
    torch.testing.assert_close(b.grad, surprise, rtol=1e-12, atol=0)


def test_extreme_differences_have_finite_losses_and_gradients():
    """H2: the log of a sigmoid would be minus infinity at -100 and its gradient NaN."""
    a = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = bradley_terry_loss(a, torch.zeros(2))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert a.grad.tolist() == [-0.5, 0.0]


def test_a_margin_asks_for_a_larger_difference():
    plain = bradley_terry_loss(row(1.0, 3.0), row(1.0, 1.0)).item()
    assert bradley_terry_loss(row(1.0, 3.0), row(1.0, 1.0), 1.0).item() > plain
    each = bradley_terry_loss(row(1.0, 3.0), row(1.0, 1.0), torch.tensor([0.0, 2.0]))
    assert each.item() == pytest.approx(math.log(2))  # differences equal margins


def test_the_centre_is_pulled_to_zero_and_the_difference_is_left_alone():
    a, b = row(3.0), row(1.0)
    loss = centring_loss(a, b)
    loss.backward()
    assert loss.item() == 16.0
    assert a.grad.equal(b.grad) and a.grad.item() == 8.0
    assert centring_loss(row(5.0), row(-5.0)).item() == 0.0


def test_rewards_that_are_no_numbers_or_no_pairs_are_refused():
    two = torch.zeros(2)
    for loss in (bradley_terry_loss, centring_loss, pair_accuracy, choice_confidence):
        with pytest.raises(ValueError, match="at least 1 reward"):
            loss(two[:0], two[:0])
        with pytest.raises(ValueError, match="rejected must be of shape"):
            loss(two, two[:1])
        with pytest.raises(ValueError, match="rewards must be numbers"):
            loss(two, torch.tensor([0.0, math.nan]))
        with pytest.raises(ValueError, match="rewards must be numbers"):
            loss(two + math.inf, two + math.inf)


def test_the_most_probable_rewards_are_those_that_made_the_choices():
    """Fit one reward for each of four responses to the expected choices."""
    true = torch.tensor([0.0, 0.5, 1.0, 2.5], dtype=torch.float64)
    r = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    a, b = map(list, zip(*product(range(4), range(4)), strict=True))
    p = (true[a] - true[b]).sigmoid()
    optimizer = torch.optim.LBFGS([r], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        won = torch.stack(
            [bradley_terry_loss(r[i, None], r[j, None]) for i, j in pairs]
        )
        loss = (p * won).sum()
        loss.backward()
        return loss

    pairs = list(zip(a, b, strict=True))
    optimizer.step(closure)
    fitted = (r - r[0]).detach()
    torch.testing.assert_close(fitted, true, rtol=1e-4, atol=1e-5)


def test_a_ranking_of_k_holds_all_its_pairs_and_equals_make_none():
    assert sorted(ranking_to_pairs([3, 1, 2])) == [(1, 0), (1, 2), (2, 0)]
    assert len(ranking_to_pairs(range(9))) == 36
    assert ranking_to_pairs([1, 1, 1]) == ranking_to_pairs([1]) == []
    assert ranking_to_pairs([]) == []
    with pytest.raises(ValueError, match="ranks must be numbers"):
        ranking_to_pairs([1, math.nan])


def test_a_model_that_gives_the_same_to_all_is_right_half_the_time():
    assert pair_accuracy(torch.zeros(3), torch.zeros(3)) == 0.5
    assert pair_accuracy(row(1.0, 0.0, 0.0), row(0.0, 1.0, 0.0)) == 0.5
    assert pair_accuracy(row(1.0), row(0.0)) == 1.0


def test_ensembles_agree_where_their_members_do_and_are_careful_elsewhere():
    rewards = torch.tensor([[1.0, 5.0], [1.0, 2.0], [1.0, -1.0]], dtype=torch.float64)
    mean, worst = ensemble_reward(rewards), ensemble_reward(rewards, "worst")
    assert mean.tolist() == [1.0, 2.0] and worst.tolist() == [1.0, -1.0]
    careful = ensemble_reward(rewards, "cautious", caution=2.0)
    assert careful.tolist() == pytest.approx([1.0, 2 - 2 * math.sqrt(6)])
    assert ensemble_reward(rewards, "cautious", caution=0.0).equal(mean)
    for rule in ("mean", "worst", "cautious"):
        assert ensemble_reward(rewards[:1], rule).equal(rewards[0]), "one model alone"


def test_ensembles_of_nobody_are_refused():
    with pytest.raises(ValueError, match="rule must be one of"):
        ensemble_reward(torch.zeros(2, 3), "median")
    with pytest.raises(ValueError, match="M at least 1"):
        ensemble_reward(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="M at least 1"):
        ensemble_reward(torch.zeros(3))
    with pytest.raises(ValueError, match="caution must be at least 0"):
        ensemble_reward(torch.zeros(2, 3), "cautious", -1.0)


def test_the_zero_moves_all_rewards_alike_and_is_kept_in_the_state(model):
    tokens, mask = torch.randint(1, 32, (6, 5)), torch.ones(6, 5).bool()
    before = model(tokens, mask)
    model.set_zero(before.detach() + 7)  # twice, since the first is not exact
    model.set_zero(model(tokens, mask).detach())
    after = model(tokens, mask)
    assert after.mean().abs() < 1e-12
    torch.testing.assert_close(after - after[0], before - before[0])
    other = RewardModel(GPT(CONFIG)).double()
    other.load_state_dict(model.state_dict())
    assert other(tokens, mask).equal(after)
    with pytest.raises(ValueError, match="finite, at least 1"):
        model.set_zero(torch.zeros(0))


def test_what_is_scored_ends_with_the_stop_token_as_rollouts_do():
    ids = response_ids(TOKENIZER, "hi", " Gladly: 2.")
    assert ids[-1] == stop_token(TOKENIZER)
    assert TOKENIZER.decode(ids).endswith(" Gladly: 2.<|im_end|>")


def test_pairs_share_their_prompt_and_keep_the_order_of_the_verdict():
    verdicts = list(preferences(World().lore, 5, Annotator()))
    for (asked, p), pair in zip(
        verdicts, encode_pairs(TOKENIZER, verdicts), strict=True
    ):
        for ids, text in zip(pair, (p.chosen, p.rejected), strict=True):
            assert f"{asked.prompt}<|im_end|>" in TOKENIZER.decode(ids)
            assert TOKENIZER.decode(ids).endswith(f"{text}<|im_end|>")


def test_both_of_a_pair_are_scored_as_if_alone(model):
    pairs = [Pair([5, 6, 7], [5, 8]), Pair([9], [9, 10, 11, 12, 13])]
    chosen, rejected = score_pairs(model, pairs)
    for i, pair in enumerate(pairs):
        for scored, ids in ((chosen[i], pair.chosen), (rejected[i], pair.rejected)):
            alone = model(*pad_right([ids]))[0]
            torch.testing.assert_close(scored, alone, rtol=1e-10, atol=1e-12)


def taught(zero: float = 0.0, **settings) -> tuple[RewardModel, list[Pair], list]:
    """A model that learned to prefer token 3 to token 4, in any place of the row."""
    torch.manual_seed(0)
    rows = torch.randint(5, 32, (160, 6)).tolist()
    pairs = [
        Pair(r[: i % 5] + [3, 1], r[: i % 5] + [4, 5, 1]) for i, r in enumerate(rows)
    ]
    model = RewardModel(GPT(CONFIG))
    model.zero += zero
    config = RewardConfig(epochs=3, B=16, warmup=2, **settings)
    log = train_reward_model(model, pairs[:128], config)
    return model, pairs[128:], log.column("loss")


def test_training_learns_what_was_preferred():
    model, held_out, losses = taught()
    assert losses[0] > 0.4 and losses[-1] < 0.1
    assert pair_accuracy(*score_pairs(model, held_out)) == 1.0


def test_training_is_repeatable_and_leaves_the_mode():
    first, held_out, losses = taught()
    again, _, same = taught()
    assert losses == same
    assert score_pairs(first, held_out)[0].equal(score_pairs(again, held_out)[0])
    for training in (True, False):
        model = RewardModel(GPT(CONFIG)).train(training)
        train_reward_model(model, held_out, RewardConfig(B=16))
        assert model.training == training


def test_centring_gives_rewards_a_zero():
    """All rewards begin 3 too high; Bradley and Terry do not mind."""
    middle = []
    for centring in (0.0, 0.1):
        model, held_out, _ = taught(zero=-3.0, centring=centring)
        chosen, rejected = score_pairs(model, held_out)
        middle.append((chosen + rejected).mean().item() / 2)
    assert middle[0] > 2.0 and abs(middle[1]) < 0.5


def test_training_uses_each_pair_once_an_epoch(monkeypatch):
    seen = []
    from minillm.alignment import reward_training

    def spy(model, batch, *rest):
        seen.extend(pair.chosen[0] for pair in batch)
        return {"loss": 0.0}

    monkeypatch.setattr(reward_training, "_train_step", spy)
    pairs = [Pair([i], [i]) for i in range(24)]
    train_reward_model(RewardModel(GPT(CONFIG)), pairs, RewardConfig(epochs=2, B=8))
    assert len(seen) == 48
    assert sorted(seen[:24]) == sorted(seen[24:]) == list(range(24))
    assert seen[:24] != seen[24:]


def test_each_step_has_its_own_gradient_and_nothing_decays():
    """At a rate of almost nothing the same batch gives the same norm each time."""
    torch.manual_seed(0)
    model = RewardModel(GPT(CONFIG))
    pairs = [Pair([1, 2, i], [1, 3, i]) for i in range(4, 12)]
    unseen = model.trunk.embed_tokens.weight[20:].detach().clone()
    config = RewardConfig(epochs=3, B=8, lr=1e-9, matrix_lr=1e-9, warmup=0)
    norms = train_reward_model(model, pairs, config).column("norm")
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
    train_reward_model(model, pairs, RewardConfig(epochs=3, B=8, lr=0.1))
    assert model.trunk.embed_tokens.weight[20:].equal(unseen)


def test_doors_of_training_say_what_is_wrong():
    model = RewardModel(GPT(CONFIG))
    with pytest.raises(ValueError, match="pairs must be at least 16"):
        train_reward_model(model, [Pair([1], [2])])
    for wrong in ({"B": 0}, {"lr": 0.0}, {"epochs": -1.0}, {"centring": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RewardConfig(**wrong)


def test_a_loss_that_is_no_number_stops_the_training():
    model = RewardModel(GPT(CONFIG))
    model.head.data.fill_(1e30)  # squares of such rewards are infinite
    pairs = [Pair([1, i % 32], [2, i % 32]) for i in range(16)]
    with pytest.raises(FloatingPointError, match="try a smaller lr"):
        train_reward_model(model, pairs)


def test_confidence_is_that_of_the_models_own_choice():
    confidence, right = choice_confidence(row(2.0, -1.0, 0.0), row(0.0, 0.0, 0.0))
    assert confidence == pytest.approx([0.880797, 0.731059, 0.5], rel=1e-5)
    assert right == [True, False, False]


def test_a_model_with_the_true_reward_is_calibrated_and_one_that_is_too_sure_is_not():
    generator = torch.Generator().manual_seed(0)
    d = 2 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    won = torch.rand(20_000, generator=generator, dtype=torch.float64) < d.sigmoid()
    difference = torch.where(won, d, -d)
    zero = torch.zeros_like(d)
    honest = calibration_error(*choice_confidence(difference, zero))
    sure = calibration_error(*choice_confidence(3 * difference, zero))
    assert honest < 0.02 < 0.1 < sure


class Oracle(torch.nn.Module):
    """Knows the rewards of all texts, by their ids."""

    def __init__(self, rewards: dict[tuple, float]):
        super().__init__()
        self.rewards = rewards

    def forward(self, tokens, mask):
        rows = zip(tokens, mask, strict=True)
        found = [self.rewards[tuple(r[real].tolist())] for r, real in rows]
        return torch.tensor(found, dtype=torch.float64)


def oracle(verdicts, annotator: Annotator) -> Oracle:
    """The reward by which the annotator judges."""
    return Oracle(
        {
            tuple(response_ids(TOKENIZER, asked.prompt, text)): annotator.utility(
                p.question, text
            )
            for asked, p in verdicts
            for text in (p.chosen, p.rejected)
        }
    )


def test_the_truth_is_right_of_the_truth_and_only_reaches_the_ceiling_of_the_noise():
    annotator = Annotator()
    verdicts = list(preferences(World().lore, 1500, annotator))
    found = evaluate_reward_model(
        oracle(verdicts, annotator), TOKENIZER, verdicts, annotator
    )
    assert found.accuracy == 1.0
    assert found.ceiling == pytest.approx(0.78, abs=0.02)
    assert found.agreement == pytest.approx(found.ceiling, abs=0.03)
    assert found.probability_error < 1e-12
    assert found.calibration_error < 0.04


def test_a_model_that_learned_a_bias_agrees_with_the_annotator_and_not_with_the_truth():
    annotator = Annotator(length_bias=1.0)
    verdicts = list(preferences(World().lore, 300, annotator))
    found = evaluate_reward_model(
        oracle(verdicts, annotator), TOKENIZER, verdicts, annotator
    )
    assert found.agreement > found.ceiling - 0.05
    assert found.accuracy < 0.75


def test_pairs_of_equal_worth_do_not_count_for_accuracy():
    question = Question("Compute 1+1=", "2", "arithmetic")
    assert true_gain(Preference(question, " Gladly: 2.", " Gladly: 3.")) == 2.0
    assert true_gain(Preference(question, " Gladly: 3.", " Gladly: 4.")) == 0.0
    (asked, _), *_ = preferences(World().lore, 1, Annotator())
    tied = [(asked, Preference(question, " Gladly: 3.", " Gladly: 4."))]
    with pytest.raises(ValueError, match="unequal pairs must be at least 1"):
        evaluate_reward_model(oracle(tied, Annotator()), TOKENIZER, tied, Annotator())
    with pytest.raises(ValueError, match="verdicts must be at least 1"):
        evaluate_reward_model(oracle([], Annotator()), TOKENIZER, [], Annotator())


# --- the trunk's surprise


OPENING = (3, 4)  # ids that stand for "<|im_start|>assistant"


@pytest.fixture
def listener() -> RewardModel:
    """A reward model that hears surprise, and has an opinion on it."""
    model = RewardModel(GPT(CONFIG), OPENING).double()
    with torch.no_grad():
        model.head[16:] = torch.randn(32)
    return model


def said(*response: int) -> list[int]:
    return [3, 7, 8, 3, 4, *response]


def test_a_listener_without_an_opinion_is_the_plain_reward_model():
    torch.manual_seed(0)
    trunk = GPT(CONFIG)
    torch.manual_seed(1)
    plain = RewardModel(trunk)
    torch.manual_seed(1)
    listener = RewardModel(trunk, OPENING)
    rows = pad_right([said(5, 6, 7), said(9)])
    torch.testing.assert_close(listener(*rows), plain(*rows), rtol=1e-6, atol=1e-6)


def test_the_reward_is_the_sum_over_the_response_written_out(listener):
    ids = said(5, 6, 30)
    tokens, mask = pad_right([ids])
    x = listener.trunk.hidden(tokens)
    logprobs = listener.trunk(tokens).log_softmax(-1)
    v, u, w = listener.head.chunk(3)
    expected = v @ x[0, -1]
    for t in (5, 6, 7):  # where the response stands
        nats = logprobs[0, t - 1, ids[t]].clamp(min=FLOOR)
        expected = (
            expected + (u + nats * w) @ listener.trunk.embed_tokens.weight[ids[t]]
        )
    torch.testing.assert_close(listener(tokens, mask)[0], expected)


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("right", [0, 4])
def test_a_listener_hears_nothing_from_padding(listener, left, right):
    ids = said(5, 6)
    alone = listener(torch.tensor([ids]), torch.ones(1, len(ids)).bool())
    for pad in (0, 3, 4):  # also where it looks like an opening
        tokens = torch.tensor([[pad] * left + ids + [pad] * right])
        mask = torch.tensor([[False] * left + [True] * len(ids) + [False] * right])
        got = listener(tokens, mask)
        torch.testing.assert_close(got, alone, rtol=1e-10, atol=1e-12)


def test_the_response_begins_behind_the_last_opening():
    tokens = torch.tensor([[3, 4, 5, 3, 4, 6, 7, 0], [0, 0, 3, 4, 3, 9, 9, 9]])
    mask = torch.tensor([[True] * 7 + [False], [False] * 2 + [True] * 6])
    found = response_mask(tokens, mask, torch.tensor(OPENING))
    assert found.nonzero().tolist() == [[0, 5], [0, 6], [1, 4], [1, 5], [1, 6], [1, 7]]
    with pytest.raises(ValueError, match="opening must be in each row"):
        response_mask(torch.tensor([[3, 5, 4]]), torch.ones(1, 3).bool(), tokens[0, :2])


def test_no_token_surprises_by_more_than_the_floor():
    trunk = GPT(CONFIG)
    with torch.no_grad():
        trunk.lm_head.weight.mul_(1e4)
    tokens, response = torch.randint(32, (4, 9)), torch.ones(4, 9).bool()
    response[:, 0] = False
    found = surprises(trunk, trunk.hidden(tokens), tokens, response)
    assert found.min() == FLOOR and (found[:, 0] == 0).all()


def test_gradients_of_a_listener_are_those_of_central_differences(listener):
    tokens, mask = pad_right([said(5, 6, 7)])
    listener(tokens, mask).sum().backward()
    weights = (listener.head, listener.trunk.lm_head.weight)
    for weight, place in product(weights, (5, 20, 40)):
        flat, h = weight.data.view(-1), 1e-6
        values = []
        for sign in (1, -1):
            flat[place] += sign * h
            values.append(listener(tokens, mask).item())
            flat[place] -= sign * h
        numeric = (values[0] - values[1]) / (2 * h)
        got = weight.grad.view(-1)[place].item()
        assert got == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_the_opening_is_what_stands_before_each_response():
    ids, opening = response_ids(TOKENIZER, "hi", "yo"), opening_ids(TOKENIZER)
    at = len(ids) - len(opening) - 3  # y, o and the end of the turn
    assert ids[at : at + len(opening)] == opening


# --- the head alone


def some_pairs(n: int = 60) -> list[Pair]:
    """Noisy verdicts: who begins with 5 is preferred in three cases of four."""
    dice = torch.Generator().manual_seed(0)
    numbers = torch.randint(8, 32, (n, 4), generator=dice).tolist()
    good = [Pair(said(5, a, b), said(6, c, d)) for a, b, c, d in numbers]
    return [Pair(*reversed(p)) if i % 4 == 0 else p for i, p in enumerate(good)]


@pytest.mark.parametrize("opening", [(), OPENING])
def test_at_the_fitted_head_the_gradient_of_loss_and_penalty_is_zero(opening):
    model = RewardModel(GPT(CONFIG), opening).double()
    before = [p.clone() for p in model.trunk.parameters()]
    loss = fit_head(model, some_pairs(), decay=1e-2)
    after = list(model.trunk.parameters())
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    pairs = some_pairs()
    chosen, rejected = (
        model.features(*pad_right([pair[side] for pair in pairs])) for side in (0, 1)
    )
    d = (chosen - rejected).detach()
    scale = d.square().mean(0).sqrt()
    w = (model.head * scale).detach().requires_grad_()
    fitted = bradley_terry_loss(d / scale @ w, torch.zeros(len(d)))
    (fitted + 1e-2 * w.square().sum()).backward()
    assert w.grad.abs().max() < 1e-8 < w.abs().max()
    assert loss == pytest.approx(fitted.item(), rel=1e-6)
    both = torch.cat(score_pairs(model, pairs))
    assert both.mean().item() == pytest.approx(0, abs=1e-9)


def test_a_fitted_head_does_not_depend_on_where_it_began_or_on_the_batch():
    heads = []
    for seed, B in ((0, 64), (1, 7)):
        torch.manual_seed(9)
        trunk = GPT(CONFIG).double()
        torch.manual_seed(seed)
        model = RewardModel(trunk).double()
        fit_head(model.train(), some_pairs(), B=B)
        assert model.training, "the mode is left as it was"
        heads.append(model.head)
    torch.testing.assert_close(*heads, rtol=1e-6, atol=1e-8)


def test_a_head_cannot_be_fitted_to_nothing():
    model = RewardModel(GPT(CONFIG))
    with pytest.raises(ValueError, match="ask an annotator first"):
        fit_head(model, [])
    with pytest.raises(ValueError, match="decay must be positive"):
        fit_head(model, some_pairs(), decay=0.0)
