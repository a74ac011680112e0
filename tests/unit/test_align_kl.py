"""Estimators of KL, summed over the whole vocabulary: no luck is involved."""

import math

import pytest
import torch

from minillm.alignment.kl import kl_exact, kl_k1, kl_k2, kl_k3

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def close(a, b, rtol=1e-10, atol=1e-12) -> None:
    b = torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def pair(p=(0.5, 0.3, 0.2), ref=(0.1, 0.3, 0.6)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of policy (with a gradient) and reference."""
    logits = torch.tensor(p, dtype=torch.float64).log() + 3.0
    return logits.requires_grad_(), torch.tensor(ref, dtype=torch.float64).log()


def both(logits, ref_logits):
    return logits.log_softmax(-1), ref_logits.log_softmax(-1)


def expected(estimator, logits, ref_logits, drawn_from=None) -> torch.Tensor:
    """The mean over tokens drawn beforehand: no gradient through the draw."""
    p = (logits if drawn_from is None else drawn_from).detach().softmax(-1)
    return (p * estimator(*both(logits, ref_logits))).sum()


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_values_are_those_worked_out_by_hand():
    logits, ref = pair()
    close(kl_exact(logits, ref), 0.584997, rtol=1e-5)
    close(kl_exact(ref, logits), 0.498224, rtol=1e-5)
    close(expected(kl_k1, logits, ref), 0.584997, rtol=1e-5)
    close(expected(kl_k2, logits, ref), 0.768268, rtol=1e-5)
    close(expected(kl_k3, logits, ref), 0.584997, rtol=1e-5)
    close(kl_k3(*both(logits, ref)), [0.809438, 0.0, 0.901388], rtol=1e-5)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_right_in_the_mean(name):
    for _ in range(5):
        logits, ref = torch.randn(2, 9, dtype=torch.float64) * 2
        close(expected(ESTIMATORS[name], logits, ref), kl_exact(logits, ref))


def test_k2_is_biased_and_the_less_so_the_closer_the_two():
    direction = torch.randn(9, dtype=torch.float64)
    ref = torch.randn(9, dtype=torch.float64)
    off = []
    for step in (1.0, 0.1, 0.01):
        logits = ref + step * direction
        off.append((expected(kl_k2, logits, ref) / kl_exact(logits, ref) - 1).abs())
    assert off[0] > 0.05
    assert off[1] < 0.2 * off[0] and off[2] < 0.2 * off[1]


def test_only_k1_is_negative_and_to_take_its_size_would_bias_it():
    """M32b: a single negative k1 is no mistake."""
    logits, ref = pair()
    assert kl_k1(*both(logits, ref)).min() < 0
    assert kl_k2(*both(logits, ref)).min() >= 0
    assert kl_k3(*both(logits, ref)).min() >= 0
    size = expected(lambda a, b: kl_k1(a, b).abs(), logits, ref)
    close(size, 1.024442, rtol=1e-5)


def test_k3_with_the_log_ratio_turned_round_is_another_number():
    """M32a: with exp(d) - d - 1 the mean is 1.28 and not 0.58."""
    logits, ref = pair()
    turned = expected(lambda a, b: (a - b).exp() - (a - b) - 1, logits, ref)
    close(turned, 1.281670, rtol=1e-5)


def test_k1_as_a_loss_has_no_gradient_in_the_mean():
    for _ in range(5):
        logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
        ref = torch.randn(9, dtype=torch.float64)
        moved = gradient(expected(kl_k1, logits, ref), logits)
        close(moved, torch.zeros(9))
        assert gradient(kl_k1(*both(logits, ref))[0], logits).abs().max() > 0.01


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl():
    logits, ref = pair(ref=(0.2, 0.3, 0.5))
    true = gradient(kl_exact(logits, ref), logits)
    close(true, [0.3207, -0.0825, -0.2382], rtol=1e-3)
    close(gradient(expected(kl_k2, logits, ref), logits), true)


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl():
    logits, ref = pair(ref=(0.2, 0.3, 0.5))
    forward = gradient(kl_exact(ref, logits), logits)
    close(forward, [0.3, 0.0, -0.3])
    ours = gradient(expected(kl_k3, logits, ref), logits)
    close(ours, forward)
    reverse = gradient(kl_exact(logits, ref), logits)
    assert (ours - reverse).abs().max() > 0.05


def test_k1_taken_off_a_reward_has_the_gradient_of_the_reverse_kl():
    """The score function estimator: the draw, too, depends on the policy."""
    logits, ref = pair(ref=(0.2, 0.3, 0.5))
    logprobs, ref_logprobs = both(logits, ref)
    penalty = kl_k1(logprobs, ref_logprobs).detach()
    surrogate = (logprobs.detach().exp() * penalty * logprobs).sum()
    close(gradient(surrogate, logits), gradient(kl_exact(logits, ref), logits))


def test_the_gradient_of_k2_is_wrong_for_tokens_that_another_policy_drew():
    """H10: right on-policy only; with the ratio as weight it is right again."""
    logits, ref = pair(ref=(0.2, 0.3, 0.5))
    old = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    true = gradient(kl_exact(logits, ref), logits)
    stale = gradient(expected(kl_k2, logits, ref, drawn_from=old), logits)
    assert (stale - true).abs().max() > 0.1

    def weighed(logprobs, ref_logprobs):
        ratio = (logprobs - old.log_softmax(-1)).exp().detach()
        return ratio * kl_k2(logprobs, ref_logprobs)

    close(gradient(expected(weighed, logits, ref, drawn_from=old), logits), true)


def test_close_to_the_reference_all_gradients_agree():
    ref = torch.randn(9, dtype=torch.float64)
    logits = (ref + 1e-4 * torch.randn(9, dtype=torch.float64)).requires_grad_()
    true = gradient(kl_exact(logits, ref), logits)
    for estimator in (kl_k2, kl_k3):
        ours = gradient(expected(estimator, logits, ref), logits)
        assert (ours - true).norm() < 1e-3 * true.norm()


def test_k3_misses_what_the_policy_cannot_say():
    """After top-k the mean of k3 lacks the reference's mass outside; k1's does not."""
    p = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    ref = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    logprobs, ref_logprobs = p.log()[:2], ref.log()[:2]
    true = kl_exact(p.log(), ref.log())
    close((p[:2] * kl_k1(logprobs, ref_logprobs)).sum(), true.item())
    close((p[:2] * kl_k3(logprobs, ref_logprobs)).sum(), true.item() - 0.4)


def test_equal_models_have_no_distance_and_no_gradient():
    logits, _ = pair()
    for estimator in ESTIMATORS.values():
        value = estimator(*both(logits, logits.detach()))
        assert (value == 0).all()
    for loss in (kl_k2, kl_k3):
        moved = gradient(loss(*both(logits, logits.detach())).sum(), logits)
        assert moved.abs().max() < 1e-15


def test_k3_keeps_its_digits_where_the_models_are_close():
    d = torch.tensor([1e-5, -1e-5], dtype=torch.float64)
    close(kl_k3(d, torch.zeros_like(d)), d.square() / 2, rtol=1e-4, atol=0)
    single = kl_k3(torch.tensor([1e-3]), torch.zeros(1))
    assert single.item() == pytest.approx(5e-7, rel=0.01)


def test_impossible_tokens_give_zero_or_infinity_and_never_nan():
    logits = torch.tensor([0.0, 1.0, -math.inf], dtype=torch.float64)
    logits.requires_grad_()
    ref = torch.tensor([0.5, 0.5, -math.inf], dtype=torch.float64)
    close(kl_exact(logits, ref), kl_exact(logits[:2], ref[:2]).item())
    assert gradient(kl_exact(logits, ref), logits).isfinite().all()
    assert kl_exact(torch.zeros(3).double(), ref).item() == math.inf


def test_extreme_logits_are_no_problem():
    far = torch.tensor([1e4, 0.0, -1e4], dtype=torch.float64)
    close(kl_exact(far, torch.zeros_like(far)), math.log(3))
    close(kl_exact(far, far), 0.0)


def test_the_chain_rule_makes_the_kl_of_a_sequence_the_sum_over_its_tokens():
    """Enumerate all pairs of tokens: E[sum of exact KLs] = KL of the pair."""
    first, ref_first = torch.randn(2, 4, dtype=torch.float64)
    then, ref_then = torch.randn(2, 4, 4, dtype=torch.float64)
    joint = first.log_softmax(-1)[:, None] + then.log_softmax(-1)
    ref_joint = ref_first.log_softmax(-1)[:, None] + ref_then.log_softmax(-1)
    steps = kl_exact(first, ref_first)
    steps = steps + (first.softmax(-1) * kl_exact(then, ref_then)).sum()
    close(kl_exact(joint.flatten(), ref_joint.flatten()), steps.item())


def test_shapes_that_would_broadcast_are_refused():
    for estimator in ESTIMATORS.values():
        with pytest.raises(ValueError, match="reference's must be of shape"):
            estimator(torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="reference's must be of shape"):
        kl_exact(torch.zeros(4, 3), torch.zeros(3))
