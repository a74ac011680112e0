"""Losses that balance: their values, their gradients, and what they do not see."""

import math

import pytest
import torch

from minillm.model.balancing import balance_loss, noisy_logits, nudge, z_loss
from minillm.model.routing import choose_experts

PROBS = torch.tensor(
    [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]]
)


def loss_of(scores, k=1):
    return balance_loss(scores, choose_experts(scores, k).load)


def test_the_balancing_loss_multiplies_load_by_probability_and_counts_experts():
    assert loss_of(PROBS.double()).item() == pytest.approx(1.05)
    # not f f: 1.125; not P P: 1.024; not without E: 0.35


@pytest.mark.parametrize(("E", "k"), [(2, 1), (8, 2), (8, 8)])
def test_it_is_one_if_either_is_uniform_and_the_number_of_experts_if_collapsed(E, k):
    uniform, scores = torch.full((E,), 1 / E).double(), torch.rand(30, E).double()
    assert balance_loss(scores, uniform).item() == pytest.approx(1)
    load = choose_experts(scores, k).load
    assert balance_loss(torch.ones(5, E).double(), load).item() == pytest.approx(1)
    one = torch.zeros(7, E).double()
    one[:, 0] = 1
    assert loss_of(one).item() == pytest.approx(E)


def test_where_load_follows_probability_one_is_the_least_and_elsewhere_it_is_not():
    for P in torch.randn(20, 6).double().softmax(-1):
        assert balance_loss(P[None], P) >= 1
    # Nine tokens narrowly for the first expert, one firmly for the second.
    apart = torch.tensor([[0.51, 0.49]] * 9 + [[0.0, 1.0]]).double()
    assert loss_of(apart).item() == pytest.approx(2 * (0.9 * 0.459 + 0.1 * 0.541))


def test_it_does_not_see_a_collapse_of_the_load_while_the_router_is_nearly_uniform():
    scores = torch.full((100, 8), 1.0).double()
    scores[:, 0] += 0.001
    assert choose_experts(scores, 1).load[0] == 1
    assert loss_of(scores).item() == pytest.approx(1, abs=1e-3)


def test_its_gradient_is_load_against_the_load_that_the_token_expects():
    z = torch.randn(13, 5).double().requires_grad_()
    p = z.softmax(-1)
    f = choose_experts(p, 2).load.requires_grad_()  # even then it gets none
    gradient, none = torch.autograd.grad(
        balance_loss(p, f), [z, f], retain_graph=True, allow_unused=True
    )
    expected = 5 / 13 * p * (f - (p * f).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert none is None


def test_z_loss_and_its_gradient():
    z = torch.randn(6, 8).double().mul(4).requires_grad_()
    (gradient,) = torch.autograd.grad(z_loss(z), z)
    expected = 2 * z.logsumexp(-1, keepdim=True) * z.softmax(-1) / 6
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert z_loss(z.log_softmax(-1)).item() == pytest.approx(0, abs=1e-24)
    assert z_loss(torch.zeros(3, 8)).item() == pytest.approx(math.log(8) ** 2)
    assert z_loss(torch.full((1, 8), 1e4)).isfinite()
    half = z_loss(torch.full((1, 8), 300.0).half())  # whose largest number is 65,504
    assert half.item() == pytest.approx((300 + math.log(8)) ** 2)


def test_noise_has_the_size_that_was_learned():
    # Of 20,000 draws the deviation is known to half a percent.
    z, spread = torch.zeros(20_000, 2).double(), torch.tensor([0.0, 3.0]).double()
    noise = noisy_logits(z, spread.expand(20_000, 2))
    expected = torch.nn.functional.softplus(spread)
    torch.testing.assert_close(
        noise.std(0), expected, rtol=0.05, atol=0
    )  # 20,000 draws


def test_a_nudge_is_a_step_of_one_size_and_stops_where_the_load_is_even():
    bias = torch.zeros(4)
    nudge(bias, torch.tensor([0.97, 0.01, 0.01, 0.01]), 0.5)
    assert bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    nudge(bias, torch.full((4,), 0.25), 0.5)
    assert bias.tolist() == [-0.5, 0.5, 0.5, 0.5]


def test_nothing_is_refused():
    empty = torch.zeros(0, 4)
    for call in (lambda: z_loss(empty), lambda: balance_loss(empty, torch.ones(4))):
        with pytest.raises(ValueError, match="of at least one token"):
            call()
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        nudge(torch.zeros(4), torch.ones(4), 0)
