"""Laws of scaling: counted operations, the optimum by search, planted exponents."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minillm.model import GPT, GPTConfig, count_parameters, flops_per_token
from minillm.training.scaling import (
    BESIROGLU,
    HOFFMANN,
    ScalingLaw,
    attention_share,
    chinchilla_loss,
    compute_optimal,
    kaplan_loss,
    kaplan_optimal,
    training_cost,
    training_flops,
)
from minillm.training.scaling_curves import envelope, isoflop_optimum, power_law

LAWS = (HOFFMANN, BESIROGLU, ScalingLaw(E=0.7, A=5.0, B=20.0, alpha=0.5, beta=1.1))
laws = pytest.mark.parametrize("law", LAWS, ids=str)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_torchs_flop_counter_counts_6nd_and_what_attention_adds(tied, causal):
    shape = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "context": 24}
    config = GPTConfig(19, **shape, tied=tied, causal=causal)
    B, T = 3, 24
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GPT(config)(torch.zeros(B, T, dtype=torch.long)).sum().backward()
    parts = count_parameters(config)
    N = parts["attention"] + parts["mlp"] + config.vocab_size * config.n_embd
    # The counter does not know which keys are masked: S = T, as for an encoder.
    attention = 12 * config.n_layer * config.n_embd * T
    assert counter.get_total_flops() == training_flops(N, B * T) + B * T * attention
    if not causal:
        assert counter.get_total_flops() == B * T * flops_per_token(config, T)
    keys = (T + 1) / 2 if causal else T
    share = attention * keys / T / (6 * N + attention * keys / T)
    assert attention_share(config, T) == pytest.approx(share, rel=1e-12)


@laws
@pytest.mark.parametrize("flops", [1e15, 1e21, 5.76e23])
def test_the_closed_form_is_where_a_search_finds_the_least_loss(law, flops):
    N, D = compute_optimal(flops, law)
    assert training_flops(N, D) == pytest.approx(flops, rel=1e-12)
    u = torch.tensor(math.log(N), dtype=torch.float64, requires_grad=True)
    loss = chinchilla_loss(u.exp(), flops / 6 / u.exp(), law)
    (slope,) = torch.autograd.grad(loss, u)
    assert abs(slope.item()) < 1e-12 * loss.item() + 1e-10 * (loss.item() - law.E)
    nearby = N * torch.logspace(-1, 1, 201, dtype=torch.float64)
    assert chinchilla_loss(nearby, flops / 6 / nearby, law).argmin() == 100


def test_tokens_a_parameter_are_those_of_the_printed_constants_and_of_the_refit():
    def ratio(flops: float, law: ScalingLaw) -> float:
        N, D = compute_optimal(flops, law)
        return D / N

    budgets = (1e19, 5.9e21, 5.76e23)
    assert [round(ratio(C, HOFFMANN)) for C in budgets] == [32, 59, 93]
    assert [round(ratio(C, BESIROGLU), 1) for C in budgets] == [24.2, 20.6, 18.4]


def test_more_compute_goes_into_size_with_betas_share_and_kaplans_power():
    for law in LAWS:
        N = [compute_optimal(C, law)[0] for C in (1e18, 1e24)]
        assert power_law(torch.tensor([1e18, 1e24]), torch.tensor(N))[1] == (
            pytest.approx(law.beta / (law.alpha + law.beta), rel=1e-6)
        )
    grown = kaplan_optimal(1e24)[0] / kaplan_optimal(1e18)[0]
    assert math.log(grown) / math.log(1e6) == pytest.approx(0.73, rel=1e-12)
    assert math.prod(kaplan_optimal(1e21)) == pytest.approx(1e21 / 6)


def test_kaplans_law_falls_in_either_count_and_ends_in_each_ones_own_law():
    assert kaplan_loss(1e9, 1e99) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert kaplan_loss(1e99, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103)
    N = torch.logspace(6, 11, 6, dtype=torch.float64)
    assert (kaplan_loss(N, 1e10).diff() < 0).all()
    assert (kaplan_loss(1e8, N).diff() < 0).all()


def test_seven_billion_on_more_tokens_beat_seventy_at_equal_cost():
    small, large = (7e9, 100e9), (70e9, 10e9)
    assert training_flops(*small) == training_flops(*large)
    assert chinchilla_loss(*small) < chinchilla_loss(*large)
    assert chinchilla_loss(7, 0.1) > 100  # counted in billions the law is nonsense


def test_a_cost_is_hours_times_a_price_and_half_the_utilisation_doubles_both():
    flops = training_flops(1e9, 20e9)
    full, half = (training_cost(flops, 3.0, 1e15, mfu) for mfu in (1.0, 0.5))
    assert full == pytest.approx((1.2e20 / 1e15 / 3600, 1.2e20 / 1e15 / 1200))
    assert half == pytest.approx((2 * full[0], 2 * full[1]))


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), torch.tensor([1.0, 0.0])])
def test_counts_that_are_none_are_refused(bad):
    for f in (chinchilla_loss, training_flops, kaplan_loss):
        with pytest.raises(ValueError, match="n_params must be above 0"):
            f(bad, 1e9)
        with pytest.raises(ValueError, match="n_tokens must be above 0"):
            f(1e9, bad)


def test_budgets_and_prices_that_are_none_are_refused():
    for f in (compute_optimal, kaplan_optimal):
        with pytest.raises(ValueError, match="flops must be positive, got 0"):
            f(0)
    with pytest.raises(ValueError, match="price must be positive"):
        training_cost(1e20, -1.0, 1e15)
    with pytest.raises(ValueError, match=r"mfu must be at most 1.*not percent"):
        training_cost(1e20, 1.0, 1e15, mfu=40)


# --- approaches 1 and 2 ---------------------------------------------------------------

BUDGETS = torch.logspace(18, 22, 9, dtype=torch.float64)


@laws
def test_the_envelope_of_training_curves_has_the_planted_exponent(law):
    middle = [compute_optimal(C.item(), law)[0] for C in BUDGETS]
    ends = math.log10(middle[0]) - 1, math.log10(middle[-1]) + 1
    N = torch.logspace(*ends, 400, dtype=torch.float64)
    D = torch.logspace(1, 19, 1500, dtype=torch.float64)
    flops, best = envelope(BUDGETS, N, D, chinchilla_loss(N[:, None], D, law))
    assert flops.equal(BUDGETS)
    planted = law.beta / (law.alpha + law.beta)
    assert power_law(flops, best)[1] == pytest.approx(planted, rel=0.01)


@laws
def test_vertices_of_parabolas_have_the_planted_exponent_though_they_are_off(law):
    found, true = [], []
    for C in BUDGETS:
        N, _ = compute_optimal(C.item(), law)
        sizes = N * torch.logspace(-0.5, 0.5, 7, dtype=torch.float64)
        found.append(isoflop_optimum(sizes, chinchilla_loss(sizes, C / 6 / sizes, law)))
        true.append(N)
    _, a = power_law(BUDGETS, torch.tensor(found))
    assert a == pytest.approx(law.beta / (law.alpha + law.beta), rel=1e-4)
    off = torch.tensor(found) / torch.tensor(true)
    assert off.std() < 1e-4 and (abs(off.mean() - 1) > 1e-3 or law.alpha == law.beta)


def test_a_budget_whose_best_size_is_at_an_end_is_left_out():
    N, D = 2.0 ** torch.arange(5), 2.0 ** torch.arange(9)
    loss = 1 / N[:, None] + 1 / D  # the optimum is N = D
    flops = 6 * torch.tensor([1.0, 16.0, 64.0, 256.0, 1e9])
    asked, best = envelope(flops, N, D, loss)
    assert asked.tolist() == [96.0, 384.0] and best.tolist() == [4.0, 8.0]


def test_curves_that_do_not_bracket_a_minimum_are_refused():
    N = torch.tensor([1.0, 2.0, 4.0])
    for losses in ([3.0, 2.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="loss must be least between the ends"):
            isoflop_optimum(N, torch.tensor(losses))
    with pytest.raises(ValueError, match="three sizes at least"):
        isoflop_optimum(N[:2], N[:2])
    with pytest.raises(ValueError, match="N and D must be growing"):
        envelope(N, N.flip(0), N, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"loss must be \(3, 3\)"):
        envelope(N, N, N, torch.ones(2, 3))
    with pytest.raises(ValueError, match="x and y must be above 0"):
        power_law(N, N - 1)
    with pytest.raises(ValueError, match="two at least"):
        power_law(N[:1], N[:1])
