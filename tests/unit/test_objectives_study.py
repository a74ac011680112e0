"""The study of objectives: equal work, every arm, and answers that mean the same."""

import importlib.util
import json
import math

import pytest
import torch

from minillm.school.studies import STUDIES
from minillm.school.tinytext import tiny_text


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("s04", STUDIES / "04_objectives.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = tiny_text(module.WORLD, documents=2000, test=5, vocab_size=module.V, T=64)
    module.text, module.B = lambda: small, 2
    return module


@pytest.mark.parametrize("arm", ["causal", "masked", "spans", "replaced"])
def test_every_arm_runs_and_ends_near_chance_without_training(study, arm):
    measured = json.loads(json.dumps(study.run(0, **study.ARMS[arm], **{"steps": 2})))
    assert all(math.isfinite(v) for v in measured.values())
    assert abs(measured["chosen"] - measured["chance"]) < 0.15


def test_all_arms_get_the_same_work(study):
    budget = study.STEPS * study.operations("causal", 1.0)
    for arm, settings in study.ARMS.items():
        if "steps" not in settings:
            each = study.operations(settings["kind"], settings.get("scored", 1.0))
            assert abs(round(budget / each) * each / budget - 1) < 0.01, arm


def test_scoring_fewer_positions_buys_more_steps(study):
    assert study.operations("causal", 0.15) < 0.8 * study.operations("causal", 1.0)


def test_a_detector_pays_for_its_generator(study):
    electra = study.build("replaced")
    alone = study.row_flops(electra.discriminator.config, study.T, study.T, head=1)
    assert study.operations("replaced", 1.0) > 1.2 * alone


def test_a_value_that_looks_replaced_is_not_chosen(study, monkeypatch):
    values, asked = study.facts()["pet"]

    class Rigged(torch.nn.Module):
        def forward(self, rows):  # everything but the third value looks replaced
            return (rows != values[2]).float()

    told = study.preferences("replaced", Rigged(), [asked[0][0]], values)
    assert told.argmax().item() == 2


def test_no_text_holds_a_mark(study):
    assert study.text().rows.max() < study.V
    assert min(study.sentinels()) == study.V + 1
