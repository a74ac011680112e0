"""DPO and the losses on its margin: identities, gradients, and the optimum of RLHF."""

import math

import pytest
import torch

from minillm.alignment.dpo import (
    dpo_loss,
    dpo_rewards,
    log_ratio_margin,
    reward_metrics,
)
from minillm.alignment.preference_losses import hinge_loss, ipo_loss, robust_dpo_loss
from minillm.alignment.tabular import bradley_terry, expected_loss, minimise
from minillm.world import Menu
from minillm.world.closed import closed_prompt, optimum, value
from minillm.world.questions import Question

M36 = torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]], dtype=torch.float64)


def random_pairs(B: int = 5) -> torch.Tensor:
    """Four rows of log-probs: policy chosen, rejected; reference chosen, rejected."""
    return -20 * torch.rand(4, B, dtype=torch.float64)


# Each loss on the four log-probs, and its value and slope as functions of the margin.
LOSSES = {
    "dpo": lambda *p: dpo_loss(*p, beta=0.3),
    "smoothed": lambda *p: dpo_loss(*p, beta=0.3, label_smoothing=0.1),
    "robust": lambda *p: robust_dpo_loss(*p, beta=0.3, flip_rate=0.1),
    "hinge": lambda *p: hinge_loss(*p, beta=0.3),
    "ipo": lambda *p: ipo_loss(*p, beta=0.3),
}
AT_ZERO = {
    "dpo": math.log(2),
    "smoothed": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / 0.6) ** 2,
}
SLOPES = {
    "dpo": lambda m: -0.3 * torch.sigmoid(-0.3 * m),
    "smoothed": lambda m: 0.3 * (torch.sigmoid(0.3 * m) - 0.9),
    "robust": lambda m: (
        -0.3 * (0.9 * torch.sigmoid(-0.3 * m) + 0.1 * torch.sigmoid(0.3 * m)) / 0.8
    ),
    "hinge": lambda m: -0.3 * (m < 1 / 0.3).double(),
    "ipo": lambda m: 2 * (m - 1 / 0.6),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def test_the_published_example_and_each_classic_mistake():
    (loss,) = dpo_loss(*M36, beta=0.1)
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)
    pc, pr, rc, rr = M36
    (swapped,) = dpo_loss(pr, pc, rr, rc, beta=0.1)
    (no_reference,) = dpo_loss(pc, pr, 0 * rc, 0 * rr, beta=0.1)
    averaged = torch.tensor([[5.0], [10.0], [5.0], [10.0]])
    (means,) = dpo_loss(*(M36 / averaged), beta=0.1)
    assert swapped.item() == pytest.approx(0.854355, abs=1e-6)
    assert no_reference.item() == pytest.approx(0.313262, abs=1e-6)
    assert means.item() == pytest.approx(0.673347, abs=1e-6)
    # beta outside of the logarithm would give 0.1 * 0.0486
    assert loss.item() > 0.1 * -math.log(torch.sigmoid(torch.tensor(3.0)).item())


@every_loss
def test_at_the_reference_the_loss_is_known_and_its_gradient_is_not_zero(name):
    pc, pr = (-20 * torch.rand(5, dtype=torch.float64) for _ in range(2))
    policy = [x.clone().requires_grad_() for x in (pc, pr)]
    losses = LOSSES[name](*policy, pc, pr)
    torch.testing.assert_close(losses, torch.full_like(pc, AT_ZERO[name]))
    losses.sum().backward()
    slope = SLOPES[name](torch.zeros(()).double()).item()
    assert abs(slope) > 0.1
    torch.testing.assert_close(policy[0].grad, torch.full_like(pc, slope))
    torch.testing.assert_close(policy[1].grad, torch.full_like(pc, -slope))


def test_before_the_first_step_beta_a_tenth_pulls_by_a_twentieth_on_each_side():
    rows = M36[:2].clone().requires_grad_()
    dpo_loss(*rows, *M36[:2], beta=0.1).sum().backward()
    assert rows.grad.flatten().tolist() == pytest.approx([-0.05, 0.05])


@every_loss
def test_the_gradient_is_the_slope_at_the_margin_and_the_reference_gets_none(name):
    rows = random_pairs().requires_grad_()
    ref = random_pairs().requires_grad_()
    margin = (rows[0] - rows[1] - ref[2] + ref[3]).detach()
    LOSSES[name](rows[0], rows[1], ref[2], ref[3]).sum().backward()
    slope = SLOPES[name](margin)
    torch.testing.assert_close(rows.grad[0], slope)
    torch.testing.assert_close(rows.grad[1], -slope)
    assert ref.grad is None, "the reference is a constant, and must be detached"


@every_loss
def test_only_the_margin_counts_whatever_the_level(name):
    """M37: two updates with one margin have one loss, though both log-probs fell."""
    pc, pr, rc, rr = random_pairs()
    expected = LOSSES[name](pc, pr, rc, rr)
    torch.testing.assert_close(LOSSES[name](pc - 7, pr - 7, rc, rr), expected)
    torch.testing.assert_close(LOSSES[name](pc, pr, rc + 3, rr + 3), expected)


@every_loss
def test_each_pair_has_a_loss_of_its_own(name):
    pairs = random_pairs(4)
    alone = [LOSSES[name](*pairs[:, i : i + 1]) for i in range(4)]
    torch.testing.assert_close(LOSSES[name](*pairs), torch.cat(alone))


@every_loss
def test_extreme_margins_give_finite_losses_and_gradients(name):
    for size in (90.0, 1e4, -1e4):
        rows = torch.tensor([[size], [0.0], [0.0], [0.0]], requires_grad=True)
        loss = LOSSES[name](*rows)
        loss.sum().backward()
        assert loss.isfinite().all() and rows.grad.isfinite().all()
    far = torch.tensor([[-1e3], [0.0], [0.0], [0.0]])
    assert dpo_loss(*far, beta=1.0).item() == pytest.approx(1e3)  # H2: not inf


def test_smoothing_mixes_both_labels_and_stops_at_its_own_margin():
    """M38: z = 0.5, epsilon 0.1."""
    pair = torch.tensor([[0.5], [0.0], [0.0], [0.0]], dtype=torch.float64)
    assert dpo_loss(*pair, beta=1.0).item() == pytest.approx(0.47408, abs=1e-5)
    smoothed = dpo_loss(*pair, beta=1.0, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.52408, abs=1e-5)
    best = math.log(0.9 / 0.1) / 0.3
    assert SLOPES["smoothed"](torch.tensor(best)).item() == pytest.approx(0, abs=1e-7)
    rows = torch.tensor([[best], [0.0], [0.0], [0.0]], dtype=torch.float64)
    rows.requires_grad_()
    dpo_loss(*rows, beta=0.3, label_smoothing=0.1).sum().backward()
    torch.testing.assert_close(rows.grad, torch.zeros_like(rows), rtol=0, atol=1e-12)


def test_robust_dpo_averaged_over_flips_is_the_loss_of_clean_labels():
    pairs, rate = random_pairs(), 0.2
    flipped = pairs[[1, 0, 3, 2]]
    robust, its_flip = (robust_dpo_loss(*p, 0.3, rate) for p in (pairs, flipped))
    clean = dpo_loss(*pairs, beta=0.3)
    torch.testing.assert_close((1 - rate) * robust + rate * its_flip, clean)
    smoothed, its_flip = (dpo_loss(*p, 0.3, rate) for p in (pairs, flipped))
    wrong = (1 - rate) * smoothed + rate * its_flip
    assert (wrong - clean).abs().max() > 0.05, "smoothing does not undo the flips"
    torch.testing.assert_close(robust_dpo_loss(*pairs, 0.3, 0.0), clean)


def test_robust_dpo_falls_below_zero_where_the_margin_is_large():
    far = torch.tensor([[100.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    assert robust_dpo_loss(*far, beta=1.0, flip_rate=0.1).item() == pytest.approx(-12.5)


def test_the_hinge_is_flat_beyond_one_over_beta():
    rows = torch.tensor([[4.0, 3.0], [0.0] * 2, [0.0] * 2, [0.0] * 2]).double()
    losses = hinge_loss(*rows, beta=0.3)
    assert losses.tolist() == pytest.approx([0.0, 0.1])


def test_ipo_pulls_to_its_margin_from_both_sides():
    """M38: margin 3, beta 0.1: 4.0; (beta m - 1/2)^2 would be 0.04."""
    assert ipo_loss(*M36, beta=0.1).item() == pytest.approx(4.0)
    margins = torch.tensor([4.9, 5.0, 5.1], dtype=torch.float64).requires_grad_()
    zero = torch.zeros_like(margins)
    ipo_loss(margins, zero, zero, zero, beta=0.1).sum().backward()
    assert margins.grad.sign().tolist() == [-1.0, 0.0, 1.0]


def test_both_readings_of_ipo_agree_only_where_lengths_are_one():
    """The paper's formula takes sums, its authors (and TRL) means over tokens."""
    pairs = random_pairs()
    lengths = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0], dtype=torch.float64)
    by_sum, by_mean = ipo_loss(*pairs, 0.1), ipo_loss(*(pairs / lengths), 0.1)
    torch.testing.assert_close(by_sum[:1], by_mean[:1])
    assert ((by_sum - by_mean).abs()[1:] > 0.1).all()
    # n equal tokens: the mean's optimum at beta is the sum's at beta / n
    n, beta = 4, 0.1
    at_mean = torch.tensor([[n / (2 * beta)], [0.0], [0.0], [0.0]]).double()
    assert ipo_loss(*(at_mean / n), beta).item() == pytest.approx(0.0, abs=1e-20)
    assert ipo_loss(*at_mean, beta / n).item() == pytest.approx(0.0, abs=1e-20)


def test_rewards_are_beta_times_the_log_ratio_and_their_margin_is_the_logit():
    pc, pr, rc, rr = pairs = random_pairs()
    chosen, rejected = dpo_rewards(pc, rc, 0.3), dpo_rewards(pr, rr, 0.3)
    torch.testing.assert_close(chosen, 0.3 * (pc - rc))
    margin = 0.3 * log_ratio_margin(*pairs)
    torch.testing.assert_close(chosen - rejected, margin)
    torch.testing.assert_close(dpo_loss(*pairs, beta=0.3), torch.log1p((-margin).exp()))


def test_metrics_are_means_and_a_tie_is_half_right():
    chosen = torch.tensor([1.0, 0.0, -1.0, 2.0], requires_grad=True)
    metrics = reward_metrics(chosen, torch.tensor([0.0, 0.0, 1.0, 4.0]))
    assert metrics.accuracy == 0.375
    assert (metrics.chosen, metrics.rejected, metrics.margin) == (0.5, 1.25, -0.75)
    at_start = reward_metrics(torch.zeros(3), torch.zeros(3))
    assert at_start.accuracy == 0.5, "nothing said is neither right nor wrong"


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, torch.zeros(3, 1)), r"policy_rejected must be of shape \(B,\)"),
        ((2, torch.zeros(2)), r"ref_chosen must be of shape \(B,\) with B = 3"),
        ((0, torch.tensor([0.0, math.nan, 0.0])), "policy_chosen must be finite"),
        ((3, torch.tensor([0.0, 0.0, -math.inf])), "ref_rejected must be finite"),
    ],
    ids=["column", "short", "nan", "never said"],
)
def test_what_would_be_silently_wrong_is_refused(loss, change, message):
    rows = [torch.zeros(3) for _ in range(4)]
    rows[change[0]] = change[1]
    with pytest.raises(ValueError, match=message):
        loss(*rows)
    with pytest.raises(ValueError, match="must be of shape"):
        loss(*[torch.zeros(0)] * 4)


def test_settings_out_of_their_range_are_refused():
    for beta in (0.0, -0.1, math.nan):
        for loss in (dpo_loss, hinge_loss, ipo_loss):
            with pytest.raises(ValueError, match="beta must be positive"):
                loss(*M36, beta=beta)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        dpo_loss(*M36, beta=0.1, label_smoothing=0.6)
    with pytest.raises(ValueError, match="flip_rate must be in"):
        robust_dpo_loss(*M36, beta=0.1, flip_rate=0.5)


# A closed world: 48 responses, their true rewards, a reference that is not uniform.


@pytest.fixture(scope="module")
def closed():
    question = Question("Compute 1+1=", "2", "arithmetic")
    prompt = closed_prompt(question, Menu((" 2", " 3", " 4"), weights=(3, 2, 1)))
    ref, rewards = (
        torch.tensor(x, dtype=torch.float64)
        for x in (prompt.ref_logprobs, prompt.rewards)
    )
    return prompt, ref, rewards


def dpo_at(beta):
    return lambda *pair: dpo_loss(*pair, beta=beta)


def best_by(loss, ref, verdicts):
    return minimise(lambda logp: expected_loss(logp, ref, verdicts, loss), ref)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 5.0])
def test_dpo_on_bradley_terry_verdicts_ends_at_the_optimum_of_rlhf(closed, beta):
    """The theorem of the paper, by minimising the expected loss over all policies."""
    prompt, ref, rewards = closed
    found = best_by(dpo_at(beta), ref, bradley_terry(rewards))
    best = optimum(prompt.ref_logprobs, prompt.rewards, beta)
    expected = torch.tensor(best.logprobs, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # The implicit reward is the true one but for a constant, beta ln Z.
    gap = dpo_rewards(found, ref, beta) - rewards
    constant = torch.full_like(gap, -beta * best.log_z)
    torch.testing.assert_close(gap, constant, rtol=1e-5, atol=1e-5)


def test_the_optimum_does_not_depend_on_which_pairs_were_compared(closed):
    _, ref, rewards = closed
    weight = torch.rand(len(ref), len(ref), dtype=torch.float64)
    weight = weight + weight.T  # both orders of a pair are equally often shown
    often = best_by(dpo_at(0.5), ref, bradley_terry(rewards) * weight)
    evenly = best_by(dpo_at(0.5), ref, bradley_terry(rewards))
    torch.testing.assert_close(often, evenly, rtol=0, atol=1e-5)


def test_a_larger_beta_stays_nearer_to_the_reference(closed):
    """I1: two of the guides that this course corrects have it the other way round."""
    prompt, ref, rewards = closed
    kls = []
    for beta in (0.1, 0.5, 1.0, 5.0):
        found = best_by(dpo_at(beta), ref, bradley_terry(rewards))
        _, kl = value(found.tolist(), prompt.ref_logprobs, prompt.rewards)
        best = optimum(prompt.ref_logprobs, prompt.rewards, beta)
        assert kl == pytest.approx(best.kl, rel=1e-5)
        kls.append(kl)
    assert kls == sorted(kls, reverse=True) and kls[0] > 50 * kls[-1]


def test_flipped_verdicts_move_dpo_and_not_its_robust_form(closed):
    _, ref, rewards = closed
    clean = bradley_terry(rewards)
    noisy = 0.8 * clean + 0.2 * clean.T
    target = best_by(dpo_at(0.5), ref, clean)
    found = best_by(lambda *pair: robust_dpo_loss(*pair, 0.5, 0.2), ref, noisy)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-4)
    assert (best_by(dpo_at(0.5), ref, noisy) - target).abs().max() > 0.5


def test_ipo_keeps_a_finite_margin_where_all_verdicts_agree_and_dpo_does_not():
    """I8: the squared loss has a target; the logistic one only a direction."""
    ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    always = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    ipo = best_by(lambda *pair: ipo_loss(*pair, beta=0.25), ref, always)
    assert (ipo[0] - ipo[1]).item() == pytest.approx(2.0, rel=1e-6)
    dpo = best_by(dpo_at(0.25), ref, always)
    assert (dpo[0] - dpo[1]).item() > 50


def test_the_chosen_response_can_become_rarer_while_everything_looks_right():
    """Likelihood displacement: responses that share features move together.

    One parameter, three responses with features 1, 2 and -3. To prefer the first over
    the second the parameter must fall, and the third, which nobody has compared, takes
    the mass of both.
    """
    features = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ref = torch.zeros(3, dtype=torch.float64).log_softmax(-1)
    losses, chosen, margins, third = [], [], [], []
    for _ in range(20):
        logp = (weight * features).log_softmax(-1)
        loss = dpo_loss(logp[:1], logp[1:2], ref[:1], ref[1:2], beta=0.5)
        losses.append(loss.item())
        chosen.append(logp[0].item())
        margins.append((logp[0] - logp[1]).item())
        third.append(logp[2].exp().item())
        (gradient,) = torch.autograd.grad(loss.sum(), weight)
        weight = (weight - 0.3 * gradient).detach().requires_grad_()
    assert losses == sorted(losses, reverse=True), "the loss falls all the time"
    assert margins == sorted(margins), "and the margin grows"
    assert chosen[-1] < chosen[0] - 1, "but the chosen response becomes rarer"
    assert third[0] == pytest.approx(1 / 3) and third[-1] > 0.9


def test_a_table_without_shared_features_shows_no_displacement():
    """So it is the shared parameters, and not the loss alone, that displace."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ref = torch.zeros(3, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    dpo_loss(logp[:1], logp[1:2], ref[:1], ref[1:2], beta=0.5).sum().backward()
    after = (logits - 0.3 * logits.grad).log_softmax(-1)
    assert after[0] > ref[0] and after[1] < ref[1]


def test_expected_losses_want_two_responses_and_a_square_of_verdicts():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="logprobs must be at least 2 responses"):
        expected_loss(one, one, torch.zeros(1, 1), LOSSES["dpo"])
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="preference must be of shape"):
        expected_loss(two, two, torch.zeros(2), LOSSES["dpo"])
