"""A run lasts as long as it was asked to, whatever the machine does meanwhile."""

from types import SimpleNamespace

import pytest

from minillm.school.pace import LEAST, UNKNOWN, Pace
from minillm.training import MetricsLog, TrainConfig
from minillm.training.schedules import wsd


def run(minutes, seconds_of_step):
    """Train on a machine whose steps take as long as we say; return the trainer."""
    trainer = SimpleNamespace(step=0, config=TrainConfig(UNKNOWN, warmup=0))
    trainer.metrics, trainer.factors = MetricsLog(None), []
    pace = Pace(trainer, minutes)
    while trainer.step < trainer.config.steps:
        trainer.factors.append(wsd(trainer.step, trainer.config.steps, 0))
        took = seconds_of_step(trainer.step)
        trainer.metrics.append({"step": trainer.step, "seconds": took})
        trainer.step += 1
        pace(trainer)
    return trainer


MACHINES = {
    "steady": lambda step: 0.1,
    "busy at first": lambda step: 2.0 if step < 12 else 0.1,
    "busy soon after": lambda step: 0.1 if step < 30 else 0.3,
    "one hiccup": lambda step: 8.0 if step == 100 else 0.1,
    "noisy": lambda step: 0.05 + 0.1 * (step * 7919 % 13) / 13,
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_run_takes_about_the_minutes_asked_for(machine):
    took = sum(run(2, machine).metrics.column("seconds"))
    assert took == pytest.approx(120, rel=0.1)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_planning_anew_never_bends_the_learning_rate(machine):
    factors = run(2, machine).factors
    n = len(factors)
    assert factors == [wsd(step, n, 0) for step in range(n)]
    assert factors[0] == 1 and factors[-1] == 0


def test_the_plan_stands_once_half_of_the_time_is_gone():
    trainer = run(2, lambda step: 0.1 if step < 700 else 0.2)
    assert trainer.step == pytest.approx(1200, rel=0.01)


def test_even_the_shortest_run_does_some_steps():
    assert run(1e-6, lambda step: 1.0).step == LEAST


def test_time_before_an_interruption_counts():
    trainer = SimpleNamespace(step=300, config=TrainConfig(1200))
    trainer.metrics = MetricsLog(None)
    for step in range(301):
        trainer.metrics.append({"step": step, "seconds": 0.1})
    pace = Pace(trainer, minutes=2)
    trainer.step = 301
    pace(trainer)
    assert trainer.config.steps == pytest.approx(1200, rel=0.01)
