"""Loss scaling beside torch's GradScaler, step by step."""

import pytest
import torch
from torch import nn

from minillm.training.loss_scaler import LossScale, scaled_step, unscale


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"growth": 1.7, "backoff": 0.3, "interval": 1},
        {"scale": 2.0**126, "interval": 2},  # cannot grow any more
    ],
    ids=str,
)
def test_states_and_weights_are_those_of_gradscaler_step_by_step(settings):
    state = LossScale(**({"interval": 3} | settings))
    theirs = torch.amp.GradScaler(
        "cpu", state.scale, state.growth, state.backoff, state.interval
    )
    ours, other = (nn.Linear(3, 1) for _ in range(2))
    other.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (ours, other)]
    torch.manual_seed(0)
    for step in range(40):
        x = torch.randn(5, 3)
        if step in (4, 5, 11, 30):
            x[0, 0] = torch.inf if step % 2 else torch.nan
        state = scaled_step(ours(x).mean(), [*ours.parameters()], optimizers[0], state)
        optimizers[1].zero_grad()
        theirs.scale(other(x).mean()).backward()
        theirs.unscale_(optimizers[1])
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        theirs.step(optimizers[1])
        theirs.update()
        assert state.scale == theirs.get_scale()
        assert state.good == theirs._get_growth_tracker()
        for a, b in zip(ours.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32
    assert all(p.isfinite().all() for p in ours.parameters())


def test_a_gradient_too_small_for_float16_arrives_only_if_the_loss_is_scaled():
    w = nn.Parameter(torch.ones(()))

    def gradient(scale: float) -> float:
        w.grad = None
        (w.half() * torch.tensor(1e-5).half() * torch.tensor(1e-3) * scale).backward()
        unscale([w], scale)
        return w.grad.item()

    assert gradient(1.0) == 0.0  # the product 1e-8 is below half of 6e-8
    assert gradient(2.0**16) == pytest.approx(1e-8, rel=2e-2)  # float16 has 11 bits


def test_an_overflow_leaves_weights_and_moments_alone():
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([w], lr=0.1)
    state = scaled_step(w.sum(), [w], optimizer, LossScale(8.0))
    before = w.detach().clone(), {k: v.clone() for k, v in optimizer.state[w].items()}
    state = scaled_step(w.sum() * torch.inf, [w], optimizer, state)
    assert (state.scale, state.good) == (4.0, 0)
    assert w.equal(before[0])
    assert all(optimizer.state[w][k].equal(v) for k, v in before[1].items())


def test_clipping_sees_the_unscaled_gradient():
    for scale in (1.0, 1024.0):
        w = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([w], lr=1.0)
        scaled_step(0.5 * w.sum(), [w], optimizer, LossScale(scale), clip=1.0)
        assert w.item() == -0.5  # its norm is below the limit, so nothing is clipped


def test_a_scale_that_falls_for_ever_never_becomes_zero():
    state = LossScale(1.0)
    for _ in range(300):
        state = state.after(False)
    assert state.scale > 0


def test_parameters_without_a_gradient_are_passed_over():
    assert unscale([nn.Parameter(torch.ones(1))], 2.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"growth": 1.0}, "growth must be above 1"),
        ({"backoff": 1.0}, "backoff must be between 0 and 1"),
        ({"interval": 0}, "interval must be an int of at least 1"),
    ],
    ids=str,
)
def test_factors_that_would_go_the_wrong_way_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        LossScale(**bad)
