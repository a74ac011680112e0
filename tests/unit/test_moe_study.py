"""The study of experts: every arm runs, and information is counted rightly."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from minillm.school.tinytext import tiny_text
from minillm.world import WorldConfig

FILE = Path(__file__).resolve().parents[2] / "studies/15_moe.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = WorldConfig(people=20, silent=5, cities=4)
    text = tiny_text(small, documents=300, test=8, vocab_size=600)
    module.text, module.STEPS, module.B, module.EVERY = lambda times: text, 2, 2, 1
    return module


def test_every_arm_runs_at_the_same_operations_but_for_the_router(study):
    operations = []
    for settings in study.ARMS.values():
        measured = json.loads(json.dumps(study.run(0, **settings)))
        numbers = [v for v in measured.values() if isinstance(v, int | float)]
        assert len(numbers) >= 3 and all(map(math.isfinite, numbers))
        operations.append(measured["operations"])
        if "nats" in measured:
            assert len(measured["load entropy"]) == 2 * settings.get("times", 1)
            assert 0 <= measured["nats"]["domain"] <= math.log(8)
    dense, *others = operations
    assert set(operations) == {dense, others[0]} and dense < others[0] < 1.01 * dense


def test_information_is_zero_if_independent_and_the_entropy_if_equal(study):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.1])
    assert study.information(np.outer(p, q)) == pytest.approx(0, abs=1e-12)
    equal = study.information(7 * np.diag(p))
    assert equal == pytest.approx(-(p * np.log(p)).sum())
