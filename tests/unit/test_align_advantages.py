"""Rewards per token and GAE: where rewards land, and what they are credited to."""

import pytest
import torch
from torch.nn.functional import pad

from minillm.alignment.advantages import gae, last_action, token_rewards

# Responses of unequal lengths, padding on both sides, one token only, and a row with a
# hole, as a tool's answer leaves one.
MASK = torch.tensor(
    [
        [0, 0, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 1],
    ]
).bool()


def random_batch(seed: int = 0):
    dice = torch.Generator().manual_seed(seed)
    both = (torch.randn(4, 6, generator=dice, dtype=torch.float64) for _ in range(2))
    return *both, MASK


def by_definition(rewards, values, mask, gamma, lam):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, row by row, actions only."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b in range(len(rewards)):
        at = mask[b].nonzero().flatten().tolist()
        r, v = rewards[b, at].tolist(), [*values[b, at].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(at))]
        for t, column in enumerate(at):
            rest = enumerate(delta[t:])
            advantages[b, column] = sum((gamma * lam) ** k * d for k, d in rest)
            returns[b, column] = advantages[b, column] + v[t]
    return advantages, returns


def by_matrix(rewards, values, gamma, lam):
    """The same for rows without padding, as one product with a triangular matrix."""
    T = rewards.shape[1]
    delta = rewards + gamma * pad(values[:, 1:], (0, 1)) - values
    distance = torch.arange(T)[None] - torch.arange(T)[:, None]
    powers = ((gamma * lam) ** distance.clamp(min=0).double()).triu()
    return delta @ powers.T


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_advantages_are_the_sum_over_what_is_to_come(gamma, lam):
    expected = by_definition(*random_batch(), gamma, lam)
    for ours, theirs in zip(gae(*random_batch(), gamma, lam), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.7, 0.4)])
def test_the_loop_is_a_product_with_a_triangular_matrix(gamma, lam):
    rewards, values, _ = random_batch(1)
    everywhere = torch.ones(4, 6).bool()
    ours, _ = gae(rewards, values, everywhere, gamma, lam)
    expected = by_matrix(rewards, values, gamma, lam)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_with_lambda_one_it_is_the_monte_carlo_return_less_the_value():
    rewards, values, mask = random_batch(2)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    kept = rewards * mask
    to_come = kept.flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(advantages, (to_come - values) * mask)
    torch.testing.assert_close(returns, to_come)  # whatever the critic says


def test_with_lambda_zero_it_is_the_error_of_one_step():
    rewards, values, _ = random_batch(3)
    everywhere = torch.ones(4, 6).bool()
    advantages, _ = gae(rewards, values, everywhere, gamma=0.9, lam=0.0)
    delta = rewards + 0.9 * pad(values[:, 1:], (0, 1)) - values
    torch.testing.assert_close(advantages, delta)


def test_advantages_of_the_worked_example():
    # M29: r = [0, 0, 1], V = [.5, .6, .7], gamma 1, lambda .95
    r, v = (
        torch.tensor([[0.0, 0, 1]]).double(),
        torch.tensor([[0.5, 0.6, 0.7]]).double(),
    )
    found = {
        lam: gae(r, v, r > -1, 1.0, lam)[0][0].tolist() for lam in (0.95, 1.0, 0.0)
    }
    forward, bootstrapped = [0.1, 0.195, 0.48525], [1.0975, 1.05, 1.0]
    assert found[0.95] == pytest.approx([0.46575, 0.385, 0.3])
    assert found[0.95] != pytest.approx(forward)  # (a) the loop runs backwards
    assert found[0.95] != pytest.approx(bootstrapped)  # (b) nothing follows the end
    assert found[1.0] == pytest.approx([0.5, 0.4, 0.3])
    assert found[0.0] == pytest.approx([0.1, 0.1, 0.3])
    # M30: returns are raw advantages plus values
    assert gae(r, v, r > -1, 1.0, 0.95)[1][0].tolist() == pytest.approx(
        [0.96575, 0.985, 1.0]
    )


def test_a_value_in_padding_is_not_taken_for_what_is_to_come():
    # M29d: leaked, the advantages would be [5.7, 6.0]
    r, v = torch.tensor([[0.0, 1, 9]]).double(), torch.tensor([[0.0, 0, 100]]).double()
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(r, v, mask, gamma=1.0, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.95, 1.0, 0.0])
    assert returns[0].tolist() == pytest.approx([0.95, 1.0, 0.0])


@pytest.mark.parametrize("junk", [1e30, torch.inf, torch.nan])
def test_whatever_stands_in_padding_changes_nothing(junk):
    rewards, values, mask = random_batch(4)
    expected = gae(rewards, values, mask, 0.9, 0.8)
    filled = (x.masked_fill(~mask, junk) for x in (rewards, values))
    for ours, theirs in zip(gae(*filled, mask, 0.9, 0.8), expected, strict=True):
        assert ours.equal(theirs)
        assert ours[~mask].equal(torch.zeros_like(ours[~mask]))


@pytest.mark.parametrize(("left", "right"), [(0, 3), (2, 0), (1, 4)])
def test_more_padding_on_either_side_moves_the_advantages_along(left, right):
    batch = random_batch(5)
    wider = [
        pad(x, (left, right), value=v) for x, v in zip(batch, (7, 7, 0), strict=True)
    ]
    wide, _ = gae(*wider[:2], wider[2].bool(), 0.9, 0.8)
    narrow, _ = gae(*batch, 0.9, 0.8)
    assert wide[:, left : left + 6].equal(narrow)


def test_sequences_are_rows_and_never_steps_of_one_another():
    # H6: four sequences of one token; only the last is rewarded.
    rewards = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    zeros = torch.zeros(4, 1)
    advantages, _ = gae(rewards, zeros, zeros == 0, gamma=0.99, lam=0.95)
    assert advantages.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_perfect_critic_leaves_nothing_to_be_surprised_by():
    mask, scores = MASK, torch.tensor([1.0, -2.0, 3.0, 0.5]).double()
    rewards = torch.where(last_action(mask), scores[:, None], 0.0)
    advantages, returns = gae(rewards, scores[:, None].expand(4, 6), mask, 1.0, 0.7)
    assert advantages.abs().max() < 1e-12
    torch.testing.assert_close(returns, scores[:, None] * mask)


def test_advantages_and_returns_are_constants_to_the_losses():
    # M30e: else the policy's loss would train the critic.
    rewards, values, mask = random_batch(6)
    for result in gae(rewards, values.requires_grad_(), mask, 1.0, 0.95):
        assert not result.requires_grad


def test_a_row_without_actions_and_a_batch_of_one():
    rewards, values = torch.ones(1, 3), torch.ones(1, 3)
    nothing = torch.zeros(1, 3).bool()
    for result in gae(rewards, values, nothing, 1.0, 0.95):
        assert result.equal(torch.zeros(1, 3))


def test_the_last_action_is_neither_the_last_column_nor_the_number_of_actions():
    assert last_action(MASK).nonzero().tolist() == [[0, 4], [1, 5], [2, 3], [3, 5]]
    assert not last_action(torch.zeros(2, 3).bool()).any()


def logprob_batch():
    dice = torch.Generator().manual_seed(7)
    both = (-torch.rand(4, 6, generator=dice, dtype=torch.float64) for _ in range(2))
    return torch.tensor([1.0, 2.0, -3.0, 0.5]).double(), *both, MASK


def test_the_score_stands_on_the_last_action_alone():
    scores, logprobs, _, mask = logprob_batch()
    rewards = token_rewards(scores, logprobs, logprobs, mask, beta=0.3)
    assert rewards.nonzero().tolist() == [[0, 4], [1, 5], [2, 3], [3, 5]]  # M28
    assert rewards.sum(1).tolist() == scores.tolist()


def test_rewards_add_up_to_the_score_less_beta_times_the_log_ratio():
    scores, logprobs, ref, mask = logprob_batch()
    rewards = token_rewards(scores, logprobs, ref, mask, beta=0.3)
    kl = ((logprobs - ref) * mask).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * kl)
    assert not rewards[~mask].any()
    first = rewards[1, 0].item()  # more probable than for the reference costs
    assert first == pytest.approx(-0.3 * (logprobs[1, 0] - ref[1, 0]).item())


@pytest.mark.parametrize(("left", "right"), [(0, 3), (2, 2)])
def test_more_padding_changes_no_reward(left, right):
    scores, logprobs, ref, mask = logprob_batch()
    wide = [pad(x, (left, right), value=-torch.inf) for x in (logprobs, ref)]
    wide_mask = pad(mask, (left, right), value=False)
    rewards = token_rewards(scores, *wide, wide_mask, beta=0.3)
    expected = token_rewards(scores, logprobs, ref, mask, beta=0.3)
    assert rewards[:, left : left + 6].equal(expected)
    assert rewards.sum().item() == pytest.approx(expected.sum().item())


def test_an_empty_response_has_no_token_to_be_rewarded():
    mask = MASK & (torch.arange(4) > 0)[:, None]
    rewards = token_rewards(*logprob_batch()[:3], mask, beta=0.3)
    assert rewards[0].equal(torch.zeros(6).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([1.0, torch.nan, 0, 0])}, "scores must be 4 finite"),
        ({"scores": torch.tensor([1.0, torch.inf, 0, 0])}, "scores must be 4 finite"),
        ({"scores": torch.zeros(4, 6)}, "scores must be 4 finite"),
        ({"ref_logprobs": torch.full((4, 6), -torch.inf)}, "must be finite at actions"),
        ({"ref_logprobs": torch.zeros(4, 5)}, "ref_logprobs must be of shape"),
        ({"mask": MASK.long()}, "mask must be a bool tensor"),
        ({"beta": -0.1}, "beta must be at least 0"),
    ],
)
def test_rewards_that_cannot_be_right_are_refused(change, message):
    scores, logprobs, ref, mask = logprob_batch()
    given = {"scores": scores, "logprobs": logprobs, "ref_logprobs": ref, "mask": mask}
    with pytest.raises(ValueError, match=message):
        token_rewards(**(given | {"beta": 0.1} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(4)}, "values must be of shape"),
        ({"values": torch.full((4, 6), torch.nan)}, "values must be finite at actions"),
        ({"rewards": torch.full((4, 6), torch.inf)}, "rewards must be finite"),
        ({"rewards": torch.zeros(4)}, "rewards must be"),
        ({"mask": MASK.double()}, "mask must be a bool tensor"),
        ({"gamma": 1.1}, "gamma must be in 0..1"),
        ({"lam": -0.1}, "lam must be in 0..1"),
    ],
)
def test_advantages_of_what_does_not_belong_together_are_refused(change, message):
    rewards, values, mask = random_batch()
    given = {"rewards": rewards, "values": values, "mask": mask, "gamma": 1.0}
    with pytest.raises(ValueError, match=message):
        gae(**(given | {"lam": 0.95} | change))
