"""PPO's losses: where they clip, what their gradients are, and what they ignore."""

import math

import pytest
import torch

from minillm.alignment.ppo import (
    adapt_beta,
    explained_variance,
    ppo_policy_loss,
    ppo_value_loss,
)
from minillm.alignment.surrogate import (
    LARGEST,
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    masked_log_ratio,
)

MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
# M27, epsilon 0.2: (ratio, advantage) -> loss and its gradient by the log-probability.
CORNERS = [
    (1.5, 1.0, -1.2, 0.0),  # good and already far above: nothing more to gain
    (1.5, -1.0, 1.5, 1.5),  # bad and above: comes back with full force
    (0.5, 1.0, -0.5, -0.5),  # good and below: comes back
    (0.5, -1.0, 0.8, 0.0),  # bad and already far below: nothing more to gain
    (1.1, 1.0, -1.1, -1.1),
    (0.9, -1.0, 0.9, 0.9),
]


def random_batch(spread: float = 0.5):
    dice = torch.Generator().manual_seed(0)
    draw = (torch.randn(3, 4, generator=dice, dtype=torch.float64) for _ in range(3))
    old, step, advantages = draw
    return (old + spread * step).requires_grad_(), old, advantages


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), CORNERS)
def test_gradients_vanish_only_on_the_side_that_is_already_paid(
    ratio, advantage, loss, slope
):
    logprobs = torch.tensor([[math.log(ratio)]]).double().requires_grad_()
    old, A = torch.zeros(1, 1).double(), torch.full((1, 1), advantage).double()
    found = ppo_policy_loss(logprobs, old, A, A != 0, clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert logprobs.grad.item() == pytest.approx(slope)


def test_the_first_gradient_is_that_of_reinforce_with_a_baseline():
    """Ratio 1: -A times the gradient of ln pi, averaged over the actions."""
    logits = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    said = torch.randint(7, (3, 4, 1))
    _, _, advantages = random_batch()
    logprobs = logits.log_softmax(-1).gather(-1, said).squeeze(-1)
    loss = ppo_policy_loss(logprobs, logprobs.detach(), advantages, MASK)
    (ours,) = torch.autograd.grad(loss, logits, retain_graph=True)
    reinforce = -(logprobs * advantages)[MASK].sum() / MASK.sum()
    (expected,) = torch.autograd.grad(reinforce, logits)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    # M26: the loss itself is only minus the mean advantage
    assert loss.item() == pytest.approx(-advantages[MASK].mean().item())
    assert ours.abs().max() > 1e-3


def test_the_loss_is_a_loop_over_actions():
    logprobs, old, advantages = random_batch()
    total = 0.0
    for b, t in MASK.nonzero().tolist():
        ratio = math.exp((logprobs[b, t] - old[b, t]).item())
        A = advantages[b, t].item()
        total -= min(ratio * A, min(max(ratio, 0.8), 1.2) * A)
    loss = ppo_policy_loss(logprobs, old, advantages, MASK, clip=0.2)
    assert loss.item() == pytest.approx(total / 6, rel=1e-12)


def test_its_gradient_is_that_of_central_differences():
    logprobs, old, advantages = random_batch()
    f = lambda x: ppo_policy_loss(x, old, advantages, MASK)  # noqa: E731
    assert torch.autograd.gradcheck(f, logprobs)
    f = lambda x: ppo_value_loss(x, old, advantages, MASK)  # noqa: E731
    assert torch.autograd.gradcheck(f, logprobs)


def test_no_gradient_reaches_old_log_probabilities_or_advantages():
    logprobs, old, advantages = random_batch()
    for constant in (old, advantages):
        constant.requires_grad_()
    ppo_policy_loss(logprobs, old, advantages, MASK).backward()
    assert logprobs.grad is not None and old.grad is None and advantages.grad is None


@pytest.mark.parametrize("junk", [1e30, torch.inf, -torch.inf, torch.nan])
def test_padding_enters_neither_loss_nor_gradient(junk):
    results = []
    for padding in (0.0, junk):
        filled = [x.detach().masked_fill(~MASK, padding) for x in random_batch()]
        filled[0].requires_grad_()
        loss = ppo_policy_loss(*filled, MASK) + ppo_value_loss(*filled, MASK)
        loss.backward()
        results.append((loss.item(), filled[0].grad))
    assert results[0][0] == results[1][0] and results[0][1].equal(results[1][1])
    assert not results[1][1][~MASK].any() and results[1][1].any()


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("distance", [-1e4, -800.0, 800.0, 1e4])
def test_policies_that_are_worlds_apart_give_finite_losses_and_gradients(
    distance, advantage
):
    logprobs = torch.full((1, 1), distance, requires_grad=True)
    A = torch.full((1, 1), advantage)
    loss = ppo_policy_loss(logprobs, torch.zeros(1, 1), A, torch.ones(1, 1).bool())
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()


def test_a_batch_without_actions_changes_nothing():
    logprobs, old, advantages = random_batch()
    nothing = torch.zeros(3, 4).bool()
    loss = ppo_policy_loss(logprobs, old, advantages, nothing)
    loss = loss + ppo_value_loss(logprobs, old, advantages, nothing)
    loss.backward()
    assert loss.item() == 0 and not logprobs.grad.any()


def test_with_the_reference_for_old_the_policy_would_be_pinned():
    """H5: pi = 0.4, reference 0.3, A > 0: out of bounds from the start, gradient 0."""
    logprobs = torch.tensor([[math.log(0.4)]], requires_grad=True)
    A, mask = torch.ones(1, 1), torch.ones(1, 1).bool()
    for old, moves in ((math.log(0.3), False), (math.log(0.4), True)):
        loss = ppo_policy_loss(logprobs, torch.full((1, 1), old), A, mask)
        (slope,) = torch.autograd.grad(loss, logprobs)
        assert bool(slope.any()) is moves


def test_the_value_loss_takes_the_larger_error():
    one = torch.ones(1, 1).double()
    mask = one.bool()
    # M30: V_old 0, V 1, R .5: 0.25; the smaller error (c) would be 0.09
    assert ppo_value_loss(one, 0 * one, one / 2, mask, 0.2).item() == 0.25
    # (d) clipped around the new value instead of the old one nothing is ever clipped
    assert ppo_value_loss(one, 0 * one, one, mask, 0.2).item() == pytest.approx(0.64)
    assert ppo_value_loss(one, 0 * one, one, mask, torch.inf).item() == 0.0


@pytest.mark.parametrize(
    ("value", "target", "moves"),
    [
        (1.0, 2.0, False),  # beyond the clip, on the way to its return
        (1.0, -2.0, True),  # beyond the clip, away from it
        (0.1, 2.0, True),  # within
    ],
)
def test_values_are_held_back_only_on_the_way_to_their_returns(value, target, moves):
    values = torch.full((1, 1), value, requires_grad=True)
    old, returns = torch.zeros(1, 1), torch.full((1, 1), target)
    ppo_value_loss(values, old, returns, old == 0, clip=0.2).backward()
    assert bool(values.grad.any()) is moves


def test_no_gradient_reaches_old_values_or_returns():
    values, old, returns = random_batch()
    for constant in (old, returns):
        constant.requires_grad_()
    ppo_value_loss(values, old, returns, MASK).backward()
    assert values.grad is not None and old.grad is None and returns.grad is None


@pytest.mark.parametrize(
    ("loss", "change", "message"),
    [
        (ppo_policy_loss, {1: torch.zeros(3)}, "old_logprobs must be of shape"),
        (ppo_policy_loss, {2: torch.zeros(3)}, "advantages must be of shape"),
        (ppo_policy_loss, {3: MASK.double()}, "mask must be a bool tensor"),
        (ppo_policy_loss, {4: 0.0}, "clip must be positive"),
        (ppo_value_loss, {1: torch.zeros(4)}, "old_values must be of shape"),
        (ppo_value_loss, {2: torch.zeros(3)}, "returns must be of shape"),
        (ppo_value_loss, {3: MASK[:, 1:]}, "mask must be a bool tensor"),
        (ppo_value_loss, {4: -1.0}, "clip must be positive"),
    ],
)
def test_what_does_not_belong_together_is_refused(loss, change, message):
    given = [*random_batch(), MASK, 0.2]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(ValueError, match=message):
        loss(*given)


def test_beta_follows_the_kl_by_a_fiftieth_of_itself_at_most():
    assert adapt_beta(0.5, kl=6.6, target=6.0) == pytest.approx(0.5 * 1.01)
    assert adapt_beta(0.5, kl=600.0, target=6.0) == pytest.approx(0.5 * 1.02)
    assert adapt_beta(0.5, kl=0.0, target=6.0) == pytest.approx(0.5 * 0.98)
    assert adapt_beta(0.5, kl=-1.0, target=6.0) == pytest.approx(0.5 * 0.98)
    with pytest.raises(ValueError, match="kl must be a number"):
        adapt_beta(0.5, math.nan, 6.0)
    with pytest.raises(ValueError, match="target must be positive"):
        adapt_beta(0.5, 1.0, 0.0)


def test_explained_variance_is_one_for_an_oracle_and_zero_for_a_constant():
    returns = torch.arange(12.0).view(3, 4)
    assert explained_variance(returns + 3, returns, MASK) == pytest.approx(1.0)
    assert explained_variance(0 * returns, returns, MASK) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3.0)
    junk = torch.where(MASK, returns, torch.nan)
    assert explained_variance(junk, junk, MASK) == pytest.approx(1.0)


def test_explained_variance_of_equal_or_no_returns_is_zero_and_no_nan():
    x = torch.ones(3, 4)
    assert explained_variance(2 * x, x, MASK) == 0.0
    assert explained_variance(x, x, torch.zeros(3, 4).bool()) == 0.0


def test_the_clip_fraction_counts_actions_without_a_gradient_and_no_others():
    ratios, advantages = (torch.tensor([[c[i] for c in CORNERS]]) for i in (0, 1))
    acts = torch.ones(1, 6).bool()
    fraction = clip_fraction(ratios, advantages, acts, 0.2, 0.2)
    assert fraction.item() == pytest.approx(2 / 6)
    assert clip_fraction(ratios, advantages, ratios < 1.2, 0.2, 0.2) == 0.25
    # two bounds: with 0.6 upwards a ratio of 1.5 is not clipped yet
    assert clip_fraction(ratios, advantages, acts, 0.2, 0.6) == pytest.approx(1 / 6)


def test_two_bounds_clip_at_two_places():
    ratio, A = torch.tensor([[1.25, 1.35, 0.75]]), torch.tensor([[1.0, 1.0, -1.0]])
    assert clipped_surrogate(ratio, A, 0.2, 0.28)[0].tolist() == pytest.approx(
        [-1.25, -1.28, 0.8]
    )


def test_the_approximate_kl_is_the_kl_in_the_mean_and_never_negative():
    old, new = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.3, 0.6]])
    log_ratio = (new / old).log().double()
    kl = (old * (old / new).log()).sum().item()
    each = [
        approximate_kl(log_ratio, torch.eye(3)[[i]].bool()).item() for i in range(3)
    ]
    assert min(each) >= 0
    weighed = sum(p * k for p, k in zip(old[0].tolist(), each, strict=True))
    assert weighed == pytest.approx(kl, rel=1e-6)


def test_the_log_ratio_is_bounded_and_zero_where_no_action_is():
    x = torch.tensor([[100.0, -100.0, 1.0, torch.nan]])
    mask = torch.tensor([[True, True, True, False]])
    found = masked_log_ratio(x, torch.zeros(1, 4), mask)
    assert found.tolist() == [[LARGEST, -LARGEST, 1.0, 0.0]]
