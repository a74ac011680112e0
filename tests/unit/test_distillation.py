"""Distillation losses: what they are, and where they tend."""

import pytest
import torch

from minillm.compression.distillation import gkd_loss, kd_loss, kl

B, T, V = 2, 5, 7


def logits(seed, scale=1.0):
    dice = torch.Generator().manual_seed(seed)
    return scale * torch.randn(B, T, V, generator=dice, dtype=torch.float64)


def student():
    return logits(0).requires_grad_()


def slope(loss, at):
    return torch.autograd.grad(loss, at)[0]


def test_whoever_agrees_with_the_teacher_has_nothing_to_learn():
    for loss in (kd_loss, gkd_loss):
        z = student()
        value = loss(z, z.detach())
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert slope(value, z).abs().max() < 1e-12


def test_at_temperature_one_it_is_cross_entropy_less_the_teachers_entropy():
    z, t = student(), logits(1)
    p = t.softmax(-1)
    cross = -(p * z.log_softmax(-1)).sum(-1).mean()
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(kd_loss(z, t), cross - entropy)
    expected = (z.softmax(-1) - p).detach() / (B * T)
    torch.testing.assert_close(slope(kd_loss(z, t), z), expected)


def test_a_teacher_who_is_sure_is_a_label():
    z, labels = student(), torch.randint(V, (B, T))
    sure = torch.full((B, T, V), -torch.inf).double()
    sure.scatter_(-1, labels[..., None], 0.0)
    expected = torch.nn.functional.cross_entropy(z.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(kd_loss(z, sure), expected)
    assert slope(kd_loss(z, sure), z).isfinite().all()


def test_the_factor_keeps_the_size_of_gradients_as_the_temperature_grows():
    # In the limit: the gradient of the mean square of centred logits over 2 V.
    z, t = student(), logits(1)
    hot = slope(kd_loss(z, t, temperature=1e4), z)
    gap = (z - z.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    limit = gap.detach() / V / (B * T)
    # what is left is of the order 1 / tau, of the largest entry
    torch.testing.assert_close(hot, limit, rtol=1e-3, atol=1e-4 * limit.abs().max())
    without = hot / 1e4**2
    assert without.abs().max() < 1e-8


def test_beta_one_half_is_symmetric_and_at_most_ln_2():
    z, t = logits(0, 20), logits(1, 20)
    torch.testing.assert_close(gkd_loss(z, t), gkd_loss(t, z))
    assert 0 < gkd_loss(z, t) < torch.tensor(2.0).log()


def test_the_ends_are_forward_and_reverse_kl():
    z, t = student(), logits(1)
    P, Q = t.log_softmax(-1), z.log_softmax(-1)
    torch.testing.assert_close(gkd_loss(z, t, beta=0.0), kl(P, Q).mean())
    torch.testing.assert_close(gkd_loss(z, t, beta=1.0), kl(Q, P).mean())


@pytest.mark.parametrize(("end", "beta"), [(0.0, 1e-5), (1.0, 1 - 1e-5)])
def test_divided_by_beta_the_formula_tends_to_the_ends(end, beta):
    z, t = student(), logits(1)
    small = beta if end == 0 else 1 - beta
    near = gkd_loss(z, t, beta=beta) / small
    torch.testing.assert_close(near, gkd_loss(z, t, beta=end), rtol=1e-3, atol=0)
    assert gkd_loss(z, t, beta=beta) < 1e-3  # the formula itself vanishes there


def test_forward_covers_and_reverse_avoids():
    # A teacher with two modes; of a student with one, which mistake costs more?
    teacher = torch.tensor([[[5.0, 5.0, 0.0]]]).double()
    one_mode = torch.tensor([[[6.0, 0.0, 0.0]]]).double()
    too_wide = torch.zeros(1, 1, 3).double()
    forward = [gkd_loss(s, teacher, beta=0.0) for s in (one_mode, too_wide)]
    reverse = [gkd_loss(s, teacher, beta=1.0) for s in (one_mode, too_wide)]
    assert forward[0] > forward[1]
    assert reverse[0] < reverse[1]


@pytest.mark.parametrize("loss", [kd_loss, gkd_loss])
def test_masked_positions_do_not_count_whatever_is_there(loss):
    z, t = student(), logits(1)
    mask = torch.tensor([[False, True, True, False, False], [False] * 4 + [True]])
    value = loss(z, t, mask)
    spoiled = z.detach().clone()
    spoiled[~mask] = torch.nan
    spoiled.requires_grad_()
    again = loss(spoiled, t, mask)
    torch.testing.assert_close(again, value)
    grad = slope(again, spoiled)
    assert (grad[~mask] == 0).all()
    assert grad[mask].isfinite().all()
    rows = torch.stack(
        [loss(z[b : b + 1], t[b : b + 1], mask[b : b + 1]) for b in (0, 1)]
    )
    torch.testing.assert_close(value, (2 * rows[0] + rows[1]) / 3)  # by positions


def test_no_gradient_reaches_the_teacher():
    z, t = student(), logits(1).requires_grad_()
    (kd_loss(z, t) + gkd_loss(z, t)).backward()
    assert t.grad is None
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [kd_loss, gkd_loss])
def test_what_cannot_be_compared_is_refused(loss):
    z = student()
    with pytest.raises(ValueError, match="one vocabulary"):
        loss(z, torch.zeros(B, T, V + 1))
    with pytest.raises(ValueError, match="True somewhere"):
        loss(z, logits(1), torch.zeros(B, T).bool())
    with pytest.raises(ValueError, match="mask"):
        loss(z, logits(1), torch.ones(B, T))
    with pytest.raises(ValueError, match="temperature"):
        loss(z, logits(1), temperature=0.0)
    with pytest.raises(ValueError, match="beta"):
        gkd_loss(z, logits(1), beta=1.5)
