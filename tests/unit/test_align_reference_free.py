"""ORPO, SimPO and CPO: odds that stay exact, margins, and the term that holds them."""

import math
from decimal import Decimal, getcontext

import pytest
import torch

from minillm.alignment.dpo import dpo_loss
from minillm.alignment.reference_free import (
    cpo_loss,
    log1mexp,
    log_odds_ratio,
    orpo_loss,
    simpo_loss,
)


def row(*values: float, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -0.3, -math.log(2), -0.7, -5.0, -40.0])
def test_log1mexp_and_its_slope_are_exact_at_both_ends(x):
    getcontext().prec = 60
    exact = (1 - Decimal(x).exp()).ln()
    point = row(x)
    log1mexp(point).sum().backward()
    assert log1mexp(point).item() == pytest.approx(float(exact), rel=1e-13)
    slope = -Decimal(x).exp() / (1 - Decimal(x).exp())
    assert point.grad.item() == pytest.approx(float(slope), rel=1e-12)


def test_the_obvious_formula_loses_what_log1mexp_keeps():
    x = torch.tensor([-1e-8, -40.0])  # float32
    naive = (1 - x.exp()).log()
    assert naive[0] == -math.inf and naive[1] == 0.0
    assert log1mexp(x).isfinite().all() and log1mexp(x)[1] < 0


def test_a_probability_of_one_has_finite_odds_and_no_nan_in_the_gradient():
    for dtype in (torch.float32, torch.float64):
        chosen = row(0.0, -1.0, 0.0, dtype=dtype)
        rejected = row(-1.0, 0.0, 0.0, dtype=dtype)
        losses = orpo_loss(chosen, rejected, beta=0.5)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all()
        assert (chosen.grad <= -1).all()  # the NLL goes on pulling
        assert losses[2].item() == pytest.approx(0.5 * math.log(2))


def test_the_odds_ratio_is_no_ratio_of_probabilities():
    """M38: p = 0.5 and 0.2 give ln 4, not ln 2.5."""
    ratio = log_odds_ratio(row(0.5).log(), row(0.2).log())
    assert ratio.item() == pytest.approx(1.38629, abs=1e-5)
    # I7: (-0.3, -1.2), log-ratio .90
    ratio = log_odds_ratio(row(-0.3), row(-1.2))
    assert ratio.item() == pytest.approx(1.89, abs=5e-3)
    assert -math.log(1 / (1 + math.exp(-ratio.item()))) == pytest.approx(
        0.141, abs=1e-3
    )


def test_orpo_at_equal_odds_is_the_nll_and_beta_ln_2():
    x = row(-0.7, -2.0)
    torch.testing.assert_close(orpo_loss(x, x, 0.3), -x + 0.3 * math.log(2))


def test_orpo_gradients_are_those_of_the_paper():
    chosen, rejected = row(-0.3, -1.5, -2.0), row(-1.2, -0.4, -0.1)
    ratio = log_odds_ratio(chosen, rejected).detach()
    orpo_loss(chosen, rejected, beta=0.5).sum().backward()
    pull = 0.5 * torch.sigmoid(-ratio)
    one_less = [1 - x.detach().exp() for x in (chosen, rejected)]
    torch.testing.assert_close(chosen.grad, -1 - pull / one_less[0])
    torch.testing.assert_close(rejected.grad, pull / one_less[1])


def test_without_preference_orpo_is_supervised_fine_tuning():
    chosen, rejected = row(-0.3, -1.5), row(-1.2, -0.4)
    losses = orpo_loss(chosen, rejected, beta=1e-12)
    torch.testing.assert_close(losses, -chosen, rtol=0, atol=1e-10)


def test_simpo_at_equal_log_probs_is_softplus_of_gamma():
    x = row(-0.7, -2.0)
    expected = torch.full_like(x, math.log1p(math.exp(0.5)))
    torch.testing.assert_close(simpo_loss(x, x, 2.0, 0.5), expected)
    without = torch.full_like(x, math.log(2))
    torch.testing.assert_close(simpo_loss(x, x, 2.0, 0.0), without)


def test_gamma_is_subtracted_outside_of_beta():
    """M38: means (-1, -2), beta 2, gamma 1; inside it would be ln 2."""
    loss = simpo_loss(row(-1.0), row(-2.0), beta=2.0, gamma=1.0)
    assert loss.item() == pytest.approx(0.31326, abs=1e-5)


def test_simpo_gradients_are_a_sigmoid_of_what_is_missing_to_gamma():
    chosen, rejected = row(-0.3, -1.5), row(-1.2, -0.4)
    simpo_loss(chosen, rejected, beta=2.0, gamma=1.0).sum().backward()
    missing = 1.0 - 2.0 * (chosen - rejected).detach()
    torch.testing.assert_close(chosen.grad, -2.0 * missing.sigmoid())
    torch.testing.assert_close(rejected.grad, 2.0 * missing.sigmoid())


def test_a_longer_response_of_equal_tokens_is_neither_better_nor_worse_for_simpo():
    """By sums, without a reference, the shorter would win whatever it says."""
    per_token, short, long = -1.0, 3, 9
    means = row(per_token * long / long), row(per_token * short / short)
    assert simpo_loss(*means, 2.0, 0.0).item() == pytest.approx(math.log(2))
    sums = row(per_token * long), row(per_token * short)
    assert cpo_loss(*sums, 2.0, alpha=0.0).item() > 11


def test_cpo_without_nll_is_dpo_with_a_uniform_reference():
    chosen, rejected = row(-3.0, -8.0), row(-4.0, -2.0)
    uniform = torch.full((2,), -5.0, dtype=torch.float64)
    dpo = dpo_loss(chosen, rejected, uniform, uniform, beta=0.3)
    torch.testing.assert_close(cpo_loss(chosen, rejected, 0.3, alpha=0.0), dpo)


def test_the_nll_is_what_keeps_the_chosen_response_of_cpo_from_falling():
    """Added to both log-probs alike, only the second term answers."""
    chosen, rejected = row(-3.0), row(-3.0)
    for alpha in (0.0, 1.0):
        drop = cpo_loss(chosen - 2, rejected - 2, 0.1, alpha).item()
        gap = drop - cpo_loss(chosen, rejected, 0.1, alpha).item()
        assert gap == pytest.approx(2 * alpha)
    cpo_loss(chosen, rejected, 0.1, alpha=0.5).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05 - 0.5)
    assert rejected.grad.item() == pytest.approx(0.05)


def test_with_lengths_the_nll_of_cpo_is_a_mean_over_tokens():
    chosen, rejected = row(-3.0, -8.0), row(-4.0, -2.0)
    lengths = torch.tensor([2.0, 6.0])
    with_nll = cpo_loss(chosen, rejected, 0.3, 1.0, lengths).mean()
    nll = with_nll - cpo_loss(chosen, rejected, 0.3, 0.0).mean()
    assert nll.item() == pytest.approx(11 / 8)  # of rows it would be (3/2 + 8/6) / 2


@pytest.mark.parametrize(
    "loss",
    [
        lambda c, r: orpo_loss(c, r, 0.1),
        lambda c, r: simpo_loss(c, r, 2.0, 0.5),
        lambda c, r: cpo_loss(c, r, 0.1),
    ],
    ids=["orpo", "simpo", "cpo"],
)
def test_what_would_be_silently_wrong_is_refused(loss):
    good = torch.full((3,), -1.0)
    with pytest.raises(ValueError, match=r"rejected must be of shape \(B,\)"):
        loss(good, good[:, None])
    with pytest.raises(ValueError, match="chosen must be finite"):
        loss(good.log(), good)
    with pytest.raises(ValueError, match="chosen must be of shape"):
        loss(good[:0], good[:0])
    far = torch.tensor([-1e4, -1e-4, -1e4], requires_grad=True)
    losses = loss(far, far.detach().flip(0) - 1)
    losses.sum().backward()
    assert losses.isfinite().all() and far.grad.isfinite().all()


def test_settings_out_of_their_range_are_refused():
    x = torch.tensor([-1.0])
    for call in (
        lambda: orpo_loss(x, x, 0.0),
        lambda: simpo_loss(x, x, -1.0, 0.5),
        lambda: cpo_loss(x, x, math.nan),
    ):
        with pytest.raises(ValueError, match="beta must be positive"):
            call()
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        simpo_loss(x, x, 2.0, -0.5)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        cpo_loss(x, x, 0.1, -1.0)
    with pytest.raises(ValueError, match="chosen_lengths must be at least 1 token"):
        cpo_loss(x, x, 0.1, 1.0, torch.tensor([0.0]))
    with pytest.raises(ValueError, match="log-probs must be at most 0"):
        orpo_loss(-x, x, 0.1)
