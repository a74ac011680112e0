"""KTO: value from a reference point, which is never negative and has no gradient."""

import math

import pytest
import torch

from minillm.alignment.kto import kto_kl, kto_loss

LABELS = torch.tensor([True, False, True, False])


def log_ratios(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_at_the_reference_each_response_costs_half_its_weight_and_teaches():
    """I5: a clamped square would have no gradient there, and never begin to learn."""
    policy = log_ratios(-3.0, -5.0, -2.0, -9.0)
    losses = kto_loss(policy, policy.detach(), LABELS, 0.0, 0.1, 1.0, 1.0)
    assert losses.tolist() == [0.5] * 4
    losses.mean().backward()
    expected = [-0.00625, 0.00625, -0.00625, 0.00625]
    assert policy.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_value_and_gradient_are_those_of_the_formula():
    policy, ref = log_ratios(-3.0, -5.0, -2.0, -9.0), log_ratios(-4.0, -3.0, -8.0, -8.5)
    beta, kl, weights = 0.3, 0.7, (1.5, 0.8)
    losses = kto_loss(policy, ref, LABELS, kl, beta, *weights)
    for i, (r, good) in enumerate(zip((policy - ref).tolist(), LABELS, strict=True)):
        x = beta * (r - kl) if good else beta * (kl - r)
        value = 1 / (1 + math.exp(-x))
        weight = weights[0] if good else weights[1]
        assert losses[i].item() == pytest.approx(weight * (1 - value), rel=1e-12)
    losses.sum().backward()
    gain = beta * (policy - ref - kl).detach()
    slope = beta * gain.sigmoid() * (-gain).sigmoid()
    sign = torch.tensor([-1.5, 0.8, -1.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(policy.grad, sign * slope)
    assert ref.grad is None, "the reference is a constant"


def test_desirable_responses_want_to_rise_and_undesirable_ones_to_fall():
    """I6: a log-ratio is not a KL to be made small; good responses rise above it."""
    policy = log_ratios(0.0, 0.0, 0.0, 0.0)
    kto_loss(policy, torch.zeros(4).double(), LABELS, 0.0, 1.0).sum().backward()
    assert policy.grad.sign().tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_raising_everything_together_gains_nothing():
    """The reference point rises with the log-ratios."""
    ratios = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    zero = torch.zeros_like(ratios)
    before = kto_loss(ratios, zero, LABELS, kto_kl(zero + 1, zero), 0.3)
    after = kto_loss(ratios + 5, zero, LABELS, kto_kl(zero + 6, zero), 0.3)
    torch.testing.assert_close(before, after)


def test_the_reference_point_is_a_mean_held_at_zero_without_a_gradient():
    policy, ref = log_ratios(-1.0, -5.0), log_ratios(-2.0, -7.0)
    kl = kto_kl(policy, ref)
    assert kl.item() == 1.5 and not kl.requires_grad
    # The mean is held, not each term: otherwise noise of mean zero would be a KL.
    assert kto_kl(log_ratios(1.0, -3.0), log_ratios(0.0, 0.0)).item() == 0.0
    assert kto_kl(log_ratios(3.0, -1.0), log_ratios(0.0, 0.0)).item() == 1.0
    assert kto_kl(ref, policy).item() == 0.0


def test_no_gradient_passes_through_a_kl_that_was_not_detached():
    policy = log_ratios(1.0, 2.0)
    kl = policy.mean()
    labels = torch.tensor([True, True])
    kto_loss(policy, torch.zeros(2).double(), labels, kl, 0.5).sum().backward()
    gain = 0.5 * (policy.detach() - 1.5)
    expected = -0.5 * gain.sigmoid() * (-gain).sigmoid()
    torch.testing.assert_close(policy.grad, expected)


def test_what_is_decided_is_left_alone_on_both_sides():
    policy = log_ratios(200.0, -200.0, -200.0, 200.0)
    losses = kto_loss(policy, torch.zeros(4).double(), LABELS, 0.0, 1.0)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0], abs=1e-12)
    assert policy.grad.abs().max() < 1e-12


def test_a_tiny_loss_is_not_rounded_to_zero():
    far = torch.tensor([20.0])  # in float32 1 - sigmoid(20) is 0
    loss = kto_loss(far, torch.zeros(1), torch.tensor([True]), 0.0, 1.0)
    assert loss.item() == pytest.approx(math.exp(-20), rel=1e-5)


def test_classes_of_one_sort_only_are_fine():
    rows = torch.tensor([1.0, 2.0])
    for good in (True, False):
        losses = kto_loss(rows, rows, torch.tensor([good] * 2), 0.0, 0.1)
        assert losses.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"desirable": torch.tensor([1, 0, 1, 0])}, "must be a bool tensor"),
        ({"desirable": LABELS[:3]}, "must be a bool tensor of shape"),
        ({"ref": torch.zeros(4, 1)}, "ref must be of shape"),
        ({"kl": -0.1}, "kl must be one number >= 0"),
        ({"kl": math.nan}, "kl must be one number >= 0"),
        ({"kl": torch.zeros(4)}, "kl must be one number >= 0"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"undesirable_weight": 0.0}, "undesirable_weight must be positive"),
        ({"policy": torch.tensor([0.0, 0.0, 0.0, -math.inf])}, "policy must be finite"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(change, message):
    given = {"policy": torch.zeros(4), "ref": torch.zeros(4), "desirable": LABELS}
    with pytest.raises(ValueError, match=message):
        kto_loss(**given | {"kl": 0.0, "beta": 0.1} | change)
