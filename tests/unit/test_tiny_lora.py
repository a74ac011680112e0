"""The tour's LoRA and QLoRA: bytes as they are held, files, and who is disturbed."""

import copy
import signal

import pytest
import torch

from minillm.compression.nf4 import quantize_nf4
from minillm.finetuning import apply_lora, apply_qlora, load_lora, sft_config
from minillm.model import GPT, GPTConfig
from minillm.school import tiny_lora, tiny_pictures, tiny_sft
from minillm.school.pipeline import Run
from minillm.school.tiny_lora import (
    LORA,
    Cost,
    Found,
    cost_of,
    fine_tune_cheaply,
    lessons,
    tell_apart,
)
from minillm.school.tinytext import tiny_text
from minillm.training import Trainer, TrainingInterrupted, load_model


@pytest.fixture(scope="module")
def text():
    return tiny_text(documents=1000, test=20, vocab_size=800)


@pytest.fixture
def base(text, monkeypatch):
    monkeypatch.setattr(tiny_lora, "EXAMPLES", 24)
    monkeypatch.setattr(tiny_sft, "HELD_OUT", 8)
    monkeypatch.setitem(tiny_lora.LORA_RATE, "warmup", 0)
    monkeypatch.setitem(tiny_lora.LORA_RATE, "lr", 0.1)  # two steps are to be seen
    torch.manual_seed(0)
    shape = (text.tokenizer.vocab_size, 1, 2)
    return GPT(GPTConfig(*shape, n_embd=16, context=128)).eval()


@pytest.fixture
def run(tmp_path):
    responses = {"responses": {"right": 0.5}, "excess after SFT": 2.0}
    return Run(tmp_path, {"seed": 0}, results={"excess": {"total": 1.0}} | responses)


def settings(examples):
    return sft_config(examples, epochs=1, **tiny_lora.LORA_RATE)


# --- what is held


def test_bytes_are_those_of_the_tensors_and_frozen_ones_hold_no_gradient(text, base):
    examples = lessons(text, 128, seed=0)
    full = cost_of(base, examples, sft_config(examples, optimizer="adamw"))
    matrices = [p for p in base.parameters() if p.ndim == 2]
    n, n_tensors = (
        sum(p.numel() for p in base.parameters()),
        len(list(base.parameters())),
    )
    assert full == Cost(n, 4 * n, 4 * n, 8 * n + 4 * n_tensors)  # and a count of steps
    lora = cost_of(
        apply_lora(copy.deepcopy(base), **LORA), examples, settings(examples)
    )
    linears = [p for p in matrices if p is not base.embed_tokens.weight]
    trained = sum(LORA["rank"] * sum(p.shape) for p in linears)
    assert (lora.trained, lora.weights) == (trained, 4 * (n + trained))
    assert lora.gradients == 4 * trained
    qlora = cost_of(
        apply_qlora(copy.deepcopy(base), **LORA), examples, settings(examples)
    )
    stored = sum(quantize_nf4(p, double_quant=True).nbytes for p in linears)
    floats = 4 * (n + trained - sum(p.numel() for p in linears))
    assert 0 <= qlora.weights - stored - floats <= 64 * len(linears)  # levels
    assert (qlora.gradients, qlora.moments) == (lora.gradients, lora.moments)


def test_counting_changes_neither_the_model_nor_its_gradients(text, base):
    before = copy.deepcopy(base.state_dict())
    examples = lessons(text, 128, seed=0)
    cost_of(base, examples, settings(examples))
    assert all(w.equal(before[name]) for name, w in base.state_dict().items())
    assert all(p.grad is None for p in base.parameters())


# --- tokens that no document holds


def test_only_unread_tokens_of_the_lessons_get_new_rows_and_these_differ(text, base):
    before = base.embed_tokens.weight.detach().clone()
    examples = lessons(text, 128, seed=0)
    n = tell_apart(base, text, examples)
    moved = (base.embed_tokens.weight != before).any(1).nonzero().flatten().tolist()
    used = {i for ids, _ in examples.encoded for i in ids}
    assert set(moved) == used - set(text.rows.flatten().tolist())
    assert {text.tokenizer.special_tokens["<|im_end|>"]} < set(moved) and n == len(
        moved
    )
    assert len(base.embed_tokens.weight[moved].unique(dim=0)) == n


# --- the stages


def test_the_files_answer_as_the_models_and_later_stages_draw_what_they_drew(
    text, base, run
):
    state = torch.get_rng_state()
    found = fine_tune_cheaply(run, text, base, resumed=False)
    assert torch.get_rng_state().equal(state)
    assert list(found) == ["sft", "lora", "qlora"]
    start = load_model(run.folder / tiny_lora.BASE / "checkpoint.safetensors")
    tokens = torch.arange(40).view(2, 20)
    merged = load_model(run.folder / "lora" / "checkpoint.safetensors")(tokens)
    apart = load_lora(copy.deepcopy(start), run.folder / "lora")(tokens)
    assert not torch.allclose(start(tokens), apart, atol=1e-3)
    torch.testing.assert_close(apart, merged, rtol=1e-4, atol=1e-5)  # float32, two sums
    assert (run.folder / "qlora" / "adapter_model.safetensors").is_file()
    assert run.results["adapters"]["lora"]["before"] == found["qlora"].before


def test_a_run_that_was_stopped_in_qlora_does_not_train_lora_again(
    text, base, run, monkeypatch
):
    original, adapters = Trainer.train_step, []

    def step(self):
        four_bits = any("packed" in name for name, _ in self.model.named_buffers())
        if self.config.steps == 2 and self.progress:  # training, not counting
            adapters.append("qlora" if four_bits else "lora")
            if adapters == ["lora", "lora", "qlora"]:
                signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    again = copy.deepcopy(base)
    with pytest.raises(
        TrainingInterrupted, match=r"qlora stopped after step 1 of 2.*go on"
    ):
        fine_tune_cheaply(run, text, base, resumed=False)
    fine_tune_cheaply(run, text, again, resumed=True)
    assert adapters == ["lora", "lora", "qlora", "qlora", "qlora"]


def test_the_picture_says_what_is_held_and_that_it_is_one_run():
    costs = (Cost(100, 400, 400, 200), Cost(10, 400, 40, 60), Cost(10, 200, 20, 30))
    names = ("sft", "lora", "qlora")
    found = {n: Found(c, [], 0.5, 0.0, 1.0) for n, c in zip(names, costs, strict=True)}
    axes, alt = tiny_pictures.cost_picture(found)
    title = "LoRA holds 50% of the bytes of full SFT, QLoRA 25%"
    assert axes.get_title(loc="left") == title
    assert "one run" in alt and "QLoRA 250 bytes, 50% right, 10 trained" in alt
