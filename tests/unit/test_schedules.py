"""Schedules at their corners (M12), everywhere between, and beside torch's."""

import itertools

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from minillm.training.schedules import constant, cosine, warmup_factor, wsd

EVERY = (cosine, wsd, constant)
every = pytest.mark.parametrize("schedule", EVERY, ids=lambda f: f.__name__)
STEPS, WARMUP = 100, 10


@every
def test_the_first_step_learns_and_the_peak_comes_when_the_warm_up_ends(schedule):
    assert schedule(0, STEPS, WARMUP) == 1 / WARMUP  # not 0: that step would be lost
    assert schedule(WARMUP - 1, STEPS, WARMUP) == 1.0
    assert schedule(WARMUP, STEPS, WARMUP) == 1.0


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("schedule", [cosine, wsd])
def test_the_last_step_is_the_floor_and_it_never_rises_again(schedule, floor):
    for step in (STEPS - 1, STEPS, STEPS + 10, 10 * STEPS):
        assert schedule(step, STEPS, WARMUP, floor) == pytest.approx(floor, abs=1e-12)


def test_constant_stays_at_the_peak():
    assert {constant(step, STEPS, WARMUP) for step in range(WARMUP, 300)} == {1.0}


@every
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5, 40, 200])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_factors_rise_during_warm_up_then_only_fall_and_stay_in_range(
    schedule, steps, warmup, floor
):
    factors = [schedule(step, steps, warmup, floor) for step in range(steps + 20)]
    assert all(0 <= factor <= 1 for factor in factors)
    after = factors[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    if warmup < 0.7 * (steps - 1):  # else wsd's decay begins during the warm-up
        before = factors[:warmup]
        assert all(a < b for a, b in itertools.pairwise(before))


@every
def test_a_run_of_a_single_step_learns_something(schedule):
    assert schedule(0, steps=1, warmup=0) == 1.0
    assert schedule(0, steps=1, warmup=4) == 0.25


def test_half_way_down_the_cosine_is_half_and_wsds_plateau_is_flat():
    assert cosine(55, steps=101, warmup=10) == pytest.approx(0.5)
    assert cosine(55, steps=101, warmup=10, floor=0.2) == pytest.approx(0.6)
    plateau = {wsd(step, 101, 10, decay=0.3) for step in range(10, 71)}
    assert plateau == {1.0}
    assert wsd(85, 101, 10, decay=0.3) == pytest.approx(0.5)
    assert wsd(85, 101, 10, floor=0.4, decay=0.3) == pytest.approx(0.7)


def test_warm_up_is_a_straight_line():
    assert [warmup_factor(s, 5) for s in range(7)] == [0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    assert warmup_factor(0, 0) == 1.0


def torchs_factors(build, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = build(optimizer), []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_equals_torchs_warm_up_and_annealing_one_after_the_other(floor):
    # torch counts intervals: T_max is from the peak (step 10) to the floor (step 99).
    # Its warm-up from 1/10 to 1 over 9 intervals is ours; the cosine begins at step 10.
    def build(optimizer):
        up = LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
        down = CosineAnnealingLR(optimizer, T_max=STEPS - 1 - WARMUP, eta_min=floor)
        return SequentialLR(optimizer, [up, down], milestones=[WARMUP])

    ours = [cosine(step, STEPS, WARMUP, floor) for step in range(STEPS)]
    # torch updates the factor recursively, so rounding accumulates
    assert ours == pytest.approx(torchs_factors(build, STEPS), rel=1e-9, abs=1e-12)


def test_torchs_cosine_rises_after_its_end_and_ours_does_not():
    def build(optimizer):
        return CosineAnnealingLR(optimizer, T_max=STEPS - 1)

    assert torchs_factors(build, STEPS + 30)[-1] > 0.1
    assert cosine(STEPS + 29, STEPS, 0) == pytest.approx(0, abs=1e-12)


def test_any_schedule_can_drive_torchs_lambda_scheduler():
    factors = torchs_factors(lambda o: LambdaLR(o, lambda s: wsd(s, 20, 4)), 20)
    assert factors == [wsd(step, 20, 4) for step in range(20)]


@pytest.mark.parametrize("schedule", [cosine, wsd])
def test_steps_before_the_first_are_refused(schedule):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        schedule(-1, STEPS, WARMUP)
