"""The studies of cheaper fine-tuning and fewer bits, on models that know nothing."""

import copy
import importlib.util
import json
import math
from types import ModuleType

import pytest
import torch

from minillm.compression.linear import HeldLinear
from minillm.school.recipes.base import Base
from minillm.school.studies import STUDIES


def study(name: str, monkeypatch, **sizes) -> ModuleType:
    """A study whose base model has read next to nothing."""
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = Base(steps=2, documents=400, B=2, n_layer=2, n_head=2, n_embd=64)
    monkeypatch.setattr(module, "Base", lambda: tiny)
    for setting, value in sizes.items():
        monkeypatch.setattr(module, setting, value)
    return module


@pytest.fixture
def planted(monkeypatch) -> ModuleType:
    sizes = {"STEPS": 2, "FITS": 300, "DOCUMENTS": 60, "TEST": 20}
    return study("12_planted_rank", monkeypatch, **sizes, RATES=(1e-2, 1e-1))


@pytest.fixture
def peft(monkeypatch) -> ModuleType:
    sizes = {"STEPS": 2, "B": 2, "ASKED": 12, "DOCUMENTS": 8, "NEW": 4}
    return study("13_peft_table", monkeypatch, **sizes)


@pytest.fixture
def bits(monkeypatch) -> ModuleType:
    sizes = {"STEPS": 1, "B": 2, "TRAINED": 40, "CALIBRATED": 40, "DOCUMENTS": 8}
    return study("14_quality_against_bits", monkeypatch, **sizes, FEW=1)


def finite(measured: dict) -> bool:
    """Whether all that was measured is numbers, also once it was in a file."""
    values = json.loads(json.dumps(measured)).values()
    flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
    return all(map(math.isfinite, flat))


# --- 12 -----------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [0, 128])
@pytest.mark.parametrize("rank", [2, 4, 8])
def test_a_trained_lora_of_a_layer_is_the_best_fit_of_its_rank(planted, rank, examples):
    gap, best = planted.layer_gaps(seed=5, rank=rank, examples=examples)
    assert gap == pytest.approx(best, rel=0.02, abs=1e-3)
    if not examples:  # singular values as 4 : 3 : 2 : 1
        assert best == pytest.approx({2: 5 / 30}.get(rank, 0.0), abs=1e-5)


def test_the_teacher_has_a_change_of_the_planted_rank_in_one_matrix(planted):
    changed = planted.planted(seed=0).weights()
    plain = planted.zoo.load(planted.Base(), seed=0, progress=False).model.weights()
    apart = {name: w - plain[name] for name, w in changed.items()}
    assert [n for n, d in apart.items() if d.any()] == [f"{planted.WHERE}.weight"]
    change = apart[f"{planted.WHERE}.weight"].double()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == planted.RANK


def test_both_scalings_are_the_same_at_rank_one_and_every_rate_is_tried(planted):
    one, other = (planted.run(0, "GPT", 1, rs) for rs in (False, True))
    assert one == other and finite(one) and len(one["gaps"]) == 2
    assert one["gap"] == min(one["gaps"]) < 1


# --- 13 -----------------------------------------------------------------------------


def test_what_is_trained_and_held_is_counted(peft):
    arms = ("full", "LoRA 8", "QLoRA 8", "IA3")
    found = {arm: peft.run(0, **peft.ARMS[arm]) for arm in arms}
    assert all(map(finite, found.values()))
    P = found["full"]["trained"]
    assert found["full"]["held"] == pytest.approx(4 * 4 * P, rel=1e-3)
    assert found["LoRA 8"]["trained"] == found["QLoRA 8"]["trained"] < P
    assert max(arms, key=lambda arm: found[arm]["held"]) == "full"
    assert found["QLoRA 8"]["held"] < found["LoRA 8"]["held"]


@pytest.mark.parametrize(
    "arm", ["DoRA 8", "adapters 16", "prefix 16, made", "P-tuning 16"]
)
def test_every_other_way_learns(peft, arm):
    settings = peft.ARMS[arm]
    assert math.isfinite(peft.tuned(**settings))


def test_what_has_not_been_trained_has_forgotten_nothing(peft):
    assert peft.run(0, **peft.ARMS["before"])["forgotten"] == 0


def test_a_soft_prompt_stands_before_all_that_is_read(peft):
    found, model = peft.begin(0, "prompt", length=3), None
    model, tokens = found.model, torch.tensor([[5, 6], [7, 8]])
    written = torch.cat([torch.tensor(found.ids).expand(2, -1), tokens], dim=1)
    expected = model.lm_head(model.hidden(written))[:, 3:]
    torch.testing.assert_close(model(tokens), expected)


def test_without_new_words_only_what_documents_say_is_a_target(peft):
    pupil = peft.begin(0, "full")
    asked = pupil.asked(6, "train")
    assert {i.topic for i in asked} <= set(peft.KNOWN)
    ids, mask = pupil.examples(asked, B=1).encoded[0]
    said = [token for token, target in zip(ids, mask, strict=True) if target]
    text = pupil.found.tokenizer.decode(said[:-1])
    assert text == f" {asked[0].question.answer}."
    assert said[-1] == pupil.found.tokenizer.eot


# --- 14 -----------------------------------------------------------------------------


def test_every_format_takes_the_bits_that_it_says(bits):
    plain, held = bits.zoo.load(bits.Base(), seed=0, progress=False).model, {}
    inputs = bits.rows(bits.CALIBRATED, "bits/calibration").split(bits.B)
    for arm in ("RTN 2, rows", "GPTQ 2", "Q4_K", "NF4, nested", "NF4", "FP4", "RTN 8"):
        settings, model = bits.ARMS[arm], copy.deepcopy(plain)
        bits.quantize_model(model, bits.quantizer(**settings), inputs)
        held[arm] = bits.stored_bits(model.layers).bits_per_weight
    order = ["RTN 2, rows", "GPTQ 2", "NF4, nested", "NF4", "RTN 8"]
    assert sorted(order, key=held.get) == order
    assert held["NF4"] == held["FP4"] == held["Q4_K"]


@pytest.mark.parametrize(
    "arm", ["float32", "float8_e4m3fn", "LLM.int8", "AWQ 3", "QAT 2"]
)
def test_a_model_in_few_bits_is_measured(bits, arm):
    assert finite(bits.run(0, **bits.ARMS[arm]))


def test_integers_are_multiplied_where_it_says_so(bits):
    model = bits.zoo.load(bits.Base(), seed=0, progress=False).model
    bits.quantize_model(model, bits.quantizer("int8"))
    tokens = torch.arange(16).view(2, 8)
    before = model(tokens)
    bits.multiply_integers(model, threshold=6.0)
    change = (model(tokens) - before).abs().max()
    assert 0 < change < 0.1 * before.abs().max()
    layer = next(m for m in model.modules() if isinstance(m, HeldLinear))
    assert layer(torch.zeros(2, 3, layer.in_features)).shape[:2] == (2, 3)
