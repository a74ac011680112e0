"""GRPO: what a group says, and how tokens are averaged."""

import math

import pytest
import torch

from minillm.alignment.groups import group_advantages, rloo_advantages
from minillm.alignment.grpo import AGGREGATIONS, aggregate, grpo_loss
from minillm.alignment.ppo import ppo_policy_loss

LENGTHS = torch.tensor([[5], [2], [1], [4]])
MASK = torch.arange(6) < LENGTHS
ADVANTAGES = torch.tensor([1.0, -0.5, 2.0, -1.5]).double()


def random_batch(spread: float = 0.4):
    dice = torch.Generator().manual_seed(0)
    draw = (torch.randn(4, 6, generator=dice, dtype=torch.float64) for _ in range(3))
    old, step, other = draw
    return (old + spread * step).requires_grad_(), old, old + 0.5 * other


def test_advantages_of_the_worked_example():
    # M39: deviation of a sample, 1e-4 added; of the population it would be .9998
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]]).double()
    found = group_advantages(rewards)
    assert found[0].tolist() == pytest.approx(
        [0.865875, -0.865875, -0.865875, 0.865875]
    )
    # (a) over the whole batch the first would be .53995 and -1.61984
    assert found[1].tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.1, -1e6, 1 / 3, 1e-30])
@pytest.mark.parametrize("f", [group_advantages, rloo_advantages])
@pytest.mark.parametrize("G", [2, 7, 8])
def test_a_group_of_equal_rewards_says_exactly_nothing(f, value, G):
    rewards = torch.full((3, G), value)  # in float32 the mean of equals may differ
    rewards[1] = torch.arange(G)
    found = f(rewards)
    assert found[0].equal(torch.zeros(G)) and found[2].equal(torch.zeros(G))
    assert found[1].any() and found.isfinite().all()


@pytest.mark.parametrize("f", [group_advantages, rloo_advantages])
def test_groups_know_nothing_of_one_another(f):
    rewards = torch.randn(3, 5, dtype=torch.float64)
    together = f(rewards)
    alone = torch.cat([f(row[None]) for row in rewards])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(together.sum(1), torch.zeros(3).double())


def test_normalised_advantages_do_not_know_the_scale_of_rewards():
    rewards = torch.randn(3, 5, dtype=torch.float64)
    scaled = group_advantages(1000 * rewards + 7, eps=0.0)
    torch.testing.assert_close(group_advantages(rewards, eps=0.0), scaled)
    plain = group_advantages(rewards, normalize=False)
    torch.testing.assert_close(plain, rewards - rewards.mean(1, keepdim=True))


def test_leave_one_out_is_the_mean_of_the_others_and_centring_times_a_constant():
    rewards = torch.randn(2, 5, dtype=torch.float64)
    found = rloo_advantages(rewards)
    for p in range(2):
        for i in range(5):
            others = [rewards[p, j].item() for j in range(5) if j != i]
            expected = rewards[p, i].item() - sum(others) / 4
            assert found[p, i].item() == pytest.approx(expected, rel=1e-9)
    centred = group_advantages(rewards, normalize=False)
    torch.testing.assert_close(found, centred * 5 / 4)


def test_rewards_may_be_truth_values():
    right = torch.tensor([[True, False]])
    assert group_advantages(right, normalize=False).tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (torch.ones(3, 1), r"rewards must be \(P, G\) with G of at least 2"),
        (torch.ones(4), r"rewards must be \(P, G\)"),
        (torch.ones(2, 2, 2), r"rewards must be \(P, G\)"),
        (torch.tensor([[1.0, torch.nan]]), "rewards must be finite"),
        (torch.tensor([[1.0, torch.inf]]), "rewards must be finite"),
    ],
)
@pytest.mark.parametrize("f", [group_advantages, rloo_advantages])
def test_groups_of_one_and_rewards_that_are_no_numbers_are_refused(f, rewards, message):
    with pytest.raises(ValueError, match=message):
        f(rewards)


def test_prompts_are_repeated_so_that_a_group_stands_together():
    # M39b: for view(-1, G) the right order is AAABBB
    prompts = torch.tensor([1, 2])
    assert prompts.repeat_interleave(3).view(-1, 3).tolist() == [[1] * 3, [2] * 3]
    assert prompts.repeat(3).view(-1, 3).tolist() != [[1] * 3, [2] * 3]


def test_three_ways_to_average_are_three_objectives():
    # M39d: lengths 2 and 8, advantages +1 and -1, ratio 1
    zeros, mask = torch.zeros(2, 8), torch.arange(8) < torch.tensor([[2], [8]])
    A, values, weights = torch.tensor([1.0, -1.0]), {}, {}
    for name in AGGREGATIONS:
        logprobs = zeros.double().requires_grad_()
        loss = grpo_loss(logprobs, zeros, A, mask, aggregation=name, length=10)
        loss.backward()
        values[name] = loss.item()
        weights[name] = (-logprobs.grad[:, 0]).tolist()
    assert values == pytest.approx({"sequence": 0.0, "token": 0.6, "constant": 0.3})
    assert weights["sequence"] == pytest.approx([0.25, -0.0625])
    assert weights["token"] == pytest.approx([0.1, -0.1])
    assert weights["constant"] == pytest.approx([0.05, -0.05])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_loss_near_zero_has_a_gradient_that_is_not(aggregation):
    # M39f: the first update of a batch
    logprobs, _, _ = random_batch()
    loss = grpo_loss(
        logprobs, logprobs, ADVANTAGES, MASK, aggregation=aggregation, length=6
    )
    loss.backward()
    direct = -(logprobs * ADVANTAGES[:, None])
    expected = torch.autograd.grad(aggregate(direct, MASK, aggregation, 6), logprobs)
    torch.testing.assert_close(logprobs.grad, expected[0], rtol=1e-12, atol=1e-14)
    assert logprobs.grad[MASK].abs().min() > 0.01


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_group_of_equal_rewards_has_exactly_no_gradient(aggregation, level):
    logprobs, old, _ = random_batch()
    A = group_advantages(torch.full((1, 4), 0.1)).flatten()
    kinds = {"aggregation": aggregation, "level": level, "length": 6}
    grpo_loss(logprobs, old, A, MASK, **kinds).backward()
    assert not logprobs.grad.any()


def test_with_one_advantage_a_token_it_is_the_policy_loss_of_ppo():
    logprobs, old, _ = random_batch()
    ours = grpo_loss(logprobs, old, ADVANTAGES, MASK, aggregation="token")
    wide = ADVANTAGES[:, None].expand(4, 6)
    assert ours.item() == pytest.approx(
        ppo_policy_loss(logprobs, old, wide, MASK).item()
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_its_gradient_is_that_of_central_differences(aggregation, level):
    logprobs, old, ref = random_batch()
    kinds = {"aggregation": aggregation, "level": level, "length": 6}

    def f(x):
        return grpo_loss(x, old, ADVANTAGES, MASK, beta=0.3, ref_logprobs=ref, **kinds)

    assert torch.autograd.gradcheck(f, logprobs)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("junk", [1e30, -torch.inf, torch.nan])
def test_padding_enters_neither_loss_nor_gradient(aggregation, level, junk):
    kinds = {"aggregation": aggregation, "level": level, "length": 6, "beta": 0.3}
    results = []
    for padding in (0.0, junk):
        filled = [x.detach().masked_fill(~MASK, padding) for x in random_batch()]
        filled[0].requires_grad_()
        rest = (ADVANTAGES, MASK)
        loss = grpo_loss(*filled[:2], *rest, ref_logprobs=filled[2], **kinds)
        loss.backward()
        results.append((loss.item(), filled[0].grad))
    assert results[0][0] == results[1][0] and results[0][1].equal(results[1][1])
    assert not results[1][1][~MASK].any() and results[1][1].any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_on_either_side_changes_nothing(aggregation):
    logprobs, old, _ = random_batch()
    parts = [torch.nn.functional.pad(x, (3, 2), value=5.0) for x in (logprobs, old)]
    mask = torch.nn.functional.pad(MASK, (3, 2), value=False)
    kinds = {"aggregation": aggregation, "length": 6}
    wide = grpo_loss(*parts, ADVANTAGES, mask, **kinds)
    narrow = grpo_loss(logprobs, old, ADVANTAGES, MASK, **kinds)
    assert wide.item() == pytest.approx(narrow.item(), rel=1e-12)


def test_an_empty_response_adds_nothing_and_no_nan():
    logprobs, old, _ = random_batch()
    mask = MASK & (torch.arange(4) > 0)[:, None]
    for aggregation in AGGREGATIONS:
        for level in ("token", "sequence"):
            kinds = {"aggregation": aggregation, "level": level, "length": 6}
            loss = grpo_loss(logprobs, old, ADVANTAGES, mask, **kinds)
            (slope,) = torch.autograd.grad(loss, logprobs)
            assert loss.isfinite() and not slope[0].any() and slope[1].any()


def test_clipping_higher_lets_a_good_token_rise_further():
    logprobs = torch.full((1, 1), math.log(1.25)).double().requires_grad_()
    old, A = torch.zeros(1, 1).double(), torch.ones(1).double()
    mask = torch.ones(1, 1).bool()
    for high, slope in ((None, 0.0), (0.28, -1.25)):
        loss = grpo_loss(logprobs, old, A, mask, clip=0.2, clip_high=high)
        (found,) = torch.autograd.grad(loss, logprobs)
        assert found.item() == pytest.approx(slope)
    # and downwards the bound is the other one
    bad = grpo_loss(-logprobs, old, -A, mask, clip=0.1, clip_high=9.0)
    assert bad.item() == pytest.approx(0.9)


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    logprobs, old, _ = random_batch(spread=0.05)
    loss = grpo_loss(logprobs, old, ADVANTAGES, MASK, level="sequence", clip=0.2)
    total = 0.0
    for row in range(4):
        n = int(LENGTHS[row])
        mean = (logprobs - old)[row, :n].mean().item()
        ratio, A = math.exp(mean), ADVANTAGES[row].item()
        total -= min(ratio * A, min(max(ratio, 0.8), 1.2) * A)
    assert loss.item() == pytest.approx(total / 4, rel=1e-12)


def test_tokens_that_cancel_are_clipped_one_by_one_but_not_as_a_sequence():
    logprobs = torch.tensor([[0.7, -0.7]]).double().requires_grad_()
    old, A = torch.zeros(1, 2).double(), torch.ones(1).double()
    mask = torch.ones(1, 2).bool()
    slopes = {}
    for level in ("token", "sequence"):
        loss = grpo_loss(logprobs, old, A, mask, level=level)
        slopes[level] = torch.autograd.grad(loss, logprobs)[0][0].tolist()
    assert slopes["token"] == pytest.approx([0.0, -math.exp(-0.7) / 2])
    assert slopes["sequence"] == pytest.approx([-0.5, -0.5])


def test_the_price_of_kl_is_k3_weighed_as_the_rest():
    logprobs, old, ref = random_batch()
    for aggregation in AGGREGATIONS:
        kinds = {"aggregation": aggregation, "length": 6}
        plain = grpo_loss(logprobs, old, ADVANTAGES, MASK, **kinds)
        priced = grpo_loss(
            logprobs, old, ADVANTAGES, MASK, beta=0.3, ref_logprobs=ref, **kinds
        )
        d = logprobs - ref
        k3 = aggregate(torch.exp(-d) + d - 1, MASK, aggregation, 6)
        assert (priced - plain).item() == pytest.approx(0.3 * k3.item(), rel=1e-9)
        assert k3 > 0


@pytest.mark.parametrize(("distance", "slope"), [(50.0, 1.0), (-800.0, 0.0)])
def test_far_from_the_reference_the_price_is_finite_and_goes_on_pulling(
    distance, slope
):
    logprobs = torch.full((1, 1), distance).double().requires_grad_()
    zeros, mask = torch.zeros(1, 1).double(), torch.ones(1, 1).bool()
    # A = 0, so that the surrogate has no gradient of its own
    loss = grpo_loss(logprobs, zeros, zeros[0], mask, beta=1.0, ref_logprobs=zeros)
    loss.backward()
    assert loss.isfinite() and logprobs.grad.item() == pytest.approx(slope)


def test_the_gradient_of_the_price_is_that_of_the_other_kl():
    """M32d: in the mean over the policy's samples, d k3 = d KL(ref || pi)."""
    z = torch.tensor([0.3, -0.2, 0.5]).double().requires_grad_()
    ref, zero = torch.tensor([0.2, 0.3, 0.5]).double().log(), torch.zeros(3, 1).double()
    logprobs = z.log_softmax(0)
    one, p = torch.ones(3, 1).bool(), logprobs.detach().exp()
    losses = [  # one response of one token each: all three there are
        grpo_loss(
            logprobs[i].view(1, 1),
            logprobs[i].view(1, 1),
            torch.zeros(1).double(),
            one[:1],
            beta=1.0,
            ref_logprobs=ref[i].view(1, 1),
        )
        for i in range(3)
    ]
    mean = sum(weight * loss for weight, loss in zip(p, losses, strict=True))
    (ours,) = torch.autograd.grad(mean, z, retain_graph=True)
    forward = (ref.exp() * (ref - logprobs)).sum()
    (expected,) = torch.autograd.grad(forward, z, retain_graph=True)
    reverse = (logprobs.exp() * (logprobs - ref)).sum()
    (other,) = torch.autograd.grad(reverse, z)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert (ours - other).abs().max() > 0.01
    assert zero.sum() == 0


def test_mini_batches_of_token_means_add_up_with_the_tokens_of_all():
    logprobs, old, _ = random_batch()
    whole = grpo_loss(logprobs, old, ADVANTAGES, MASK, aggregation="token")
    n, parts = int(MASK.sum()), (slice(0, 1), slice(1, 4))
    added, averaged = (
        sum(
            grpo_loss(
                logprobs[s],
                old[s],
                ADVANTAGES[s],
                MASK[s],
                aggregation="token",
                n_tokens=k,
            ).item()
            for s in parts
        )
        for k in (n, None)
    )
    assert added == pytest.approx(whole.item(), rel=1e-12)
    assert averaged / 2 != pytest.approx(whole.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.ones(4, 6)}, "advantages must be of shape"),
        ({"old_logprobs": torch.zeros(4, 5)}, "old_logprobs must be of shape"),
        ({"mask": MASK.long()}, "mask must be a bool tensor"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"clip_high": -1.0}, "clip_high must be positive"),
        ({"beta": 0.1}, "ref_logprobs must be the reference's"),
        ({"aggregation": "mean"}, "aggregation must be one of"),
        ({"level": "batch"}, "level must be one of"),
        ({"aggregation": "constant"}, "length must be given"),
        ({"aggregation": "constant", "length": 0}, "length must be positive"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    logprobs, old, _ = random_batch()
    given = {"logprobs": logprobs, "old_logprobs": old, "advantages": ADVANTAGES}
    with pytest.raises(ValueError, match=message):
        grpo_loss(**(given | {"mask": MASK} | change))


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_a_price_below_zero_is_refused(beta):
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match="beta must be at least 0"):
        grpo_loss(zeros, zeros, zeros[:, 0], mask, beta=beta, ref_logprobs=zeros)
