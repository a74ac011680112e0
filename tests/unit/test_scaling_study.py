"""The study of scaling: its language, its truth, and that every arm runs."""

import importlib.util
import json
import math

import pytest
import torch

from minillm.model import GPT, GPTConfig
from minillm.school.studies import STUDIES


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", STUDIES / "16_scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_facts_are_all_different_and_each_subject_has_one_value(study):
    facts = study.facts()
    assert facts.shape == (study.WORDS**2, 4) and (facts[:, 0] == 0).all()
    assert len(facts[:, 1:3].unique(dim=0)) == len(facts)
    first, second, value = facts[:, 1:].T
    assert first.min() >= 1 and first.max() < second.min()  # words of each place
    assert second.max() < value.min() and value.max() == 2 * study.WORDS + study.VALUES
    assert math.fsum(study.P) == pytest.approx(1)
    told = torch.distributions.Categorical(torch.tensor(study.P).double()).entropy()
    assert pytest.approx(told.item(), rel=1e-7) == study.ENTROPY


def test_every_arm_runs_and_no_model_is_better_than_the_entropy(study, monkeypatch):
    monkeypatch.setattr(study, "B", 4)
    for settings in list(study.GRID.values())[::4]:
        measured = study.run(0, settings["C"], steps=2)
        assert measured == json.loads(json.dumps(measured))
        assert measured["loss"] > study.ENTROPY and 0 < measured["head"] < 1
        assert measured["D"] == 2 * 4 * 4


def test_equal_seeds_give_equal_losses_and_others_other_ones(study):
    one, again, other = (study.run(seed, 8, steps=2) for seed in (0, 0, 1))
    assert one == again and one["loss"] != other["loss"]


def test_sizes_are_counted_without_the_embedding(study):
    measured = study.run(0, 8, steps=1)
    model = GPT(GPTConfig(193, 1, 1, n_embd=8, n_hidden=32, context=4))
    total = sum(p.numel() for p in model.parameters())
    assert measured["N"] == total - model.embed_tokens.weight.numel()
