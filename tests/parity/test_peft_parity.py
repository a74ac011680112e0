"""Adapters beside PEFT's, on the same Llama: logits and gradients, files both ways.

PEFT 0.21. Where it differs (merging and unmerging by subtraction, positions after a
prefix, averages of factors), both readings are tested.
"""

import json

import pytest
import torch

from minillm.finetuning.adapted import merge
from minillm.finetuning.adapter_files import load_lora, save_lora
from minillm.finetuning.dora import DoRALinear
from minillm.finetuning.ia3 import apply_ia3
from minillm.finetuning.lora import apply_lora, lora_layers
from minillm.finetuning.lora_state import compose_lora, lora_state
from minillm.finetuning.prefix import apply_prefix
from minillm.finetuning.prompts import apply_prompt
from minillm.model import GPT, GPTConfig
from minillm.model.huggingface import export_huggingface
from minillm.training import next_token_loss

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SHAPE = GPTConfig(40, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, context=32)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])
TARGETS = ["q_proj", "v_proj", "down_proj"]
EXACT = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    return model, export_huggingface(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def ours(exported):
    model = GPT(SHAPE)
    model.load_state_dict(exported[0].state_dict())
    return model.double()


@pytest.fixture
def theirs(exported):
    load = transformers.LlamaForCausalLM.from_pretrained
    # RoPE in float32 there and here; the rest in float64
    return load(exported[1], dtype=torch.float32).double()


def shaken(model, seed=1):
    dice = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
            parameter.data += 0.2 * noise
    return model


def logits(model):
    return model(TOKENS).logits


def close(a, b, rtol=1e-5, atol=1e-6):
    # angles of RoPE are float32 in both, and rounded in another order
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def lora_config(**settings):
    named = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | settings
    return peft.LoraConfig(task_type="CAUSAL_LM", **named)


SETTINGS = {
    "lora": ({}, {}),
    "rslora": ({"rank_stabilized": True}, {"use_rslora": True}),
    "dora": ({"layer": DoRALinear}, {"use_dora": True}),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapter_saved_here_answers_alike_in_peft(kind, ours, theirs, tmp_path):
    mine, _ = SETTINGS[kind]
    model = shaken(apply_lora(ours, 3, 6, TARGETS, **mine))
    folder = save_lora(model, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(theirs, folder).double()
    close(model(TOKENS), logits(loaded))
    assert (logits(loaded) - logits(loaded.unload())).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapter_of_peft_answers_alike_here(kind, ours, theirs, tmp_path):
    _, their_settings = SETTINGS[kind]
    model = shaken(peft.get_peft_model(theirs, lora_config(**their_settings)))
    model.save_pretrained(tmp_path)
    close(load_lora(ours, tmp_path)(TOKENS), logits(model))


@pytest.mark.parametrize("kind", SETTINGS)
def test_gradients_are_those_of_peft(kind, ours, theirs, tmp_path):
    mine, _ = SETTINGS[kind]
    model = shaken(apply_lora(ours, 3, 6, TARGETS, **mine))
    save_lora(model, tmp_path)
    load = peft.PeftModel.from_pretrained
    other = load(theirs, tmp_path, is_trainable=True).double()
    next_token_loss(model(TOKENS), TOKENS).backward()
    other(TOKENS, labels=TOKENS).loss.backward()
    grads = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    names = {"lora_A": "lora_A", "lora_B": "lora_B", "magnitude": "magnitude_vector"}
    compared = 0
    for layer, module in lora_layers(model).items():
        for ours_, theirs_ in names.items():
            if hasattr(module, ours_):
                (key,) = (n for n in grads if layer in n and theirs_ in n)
                close(getattr(module, ours_).grad, grads[key], rtol=1e-4)
                compared += 1
    assert compared == len(grads)


@pytest.mark.parametrize("kind", SETTINGS)
def test_merged_weights_are_those_of_peft(kind, ours, theirs, tmp_path):
    mine, _ = SETTINGS[kind]
    model = shaken(apply_lora(ours, 3, 6, TARGETS, **mine))
    save_lora(model, tmp_path)
    other = peft.PeftModel.from_pretrained(theirs, tmp_path).double().merge_and_unload()
    merge(model)
    for name, layer in lora_layers(model).items():
        weight = other.get_submodule(f"model.{name}").weight
        torch.testing.assert_close(layer.base.weight, weight, **EXACT)


def test_unmerging_there_leaves_rounding_errors_and_here_none(ours, theirs, tmp_path):
    model = shaken(apply_lora(ours.float(), 3, 6, TARGETS))
    save_lora(model, tmp_path)
    layer = lora_layers(model)["layers.0.self_attn.q_proj"]
    before = layer.base.weight.clone()
    layer.merge()
    layer.unmerge()
    assert torch.equal(layer.base.weight, before)
    other = peft.PeftModel.from_pretrained(theirs.float(), tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    their_weight = other.get_submodule(name).base_layer.weight
    other.merge_adapter()
    other.unmerge_adapter()
    assert not torch.equal(their_weight, before)
    torch.testing.assert_close(their_weight, before, rtol=1e-4, atol=1e-6)


def test_their_concatenation_is_our_composition_and_their_linear_one_is_not(
    ours, theirs, tmp_path
):
    weights, folders = [0.7, 0.4], []
    model = apply_lora(ours, 3, 6, TARGETS)
    states = []
    for seed in (1, 2):
        shaken(model, seed)
        states.append(lora_state(model))
        folders.append(save_lora(model, tmp_path / str(seed)))
    other = peft.PeftModel.from_pretrained(theirs, folders[0], adapter_name="a")
    other.load_adapter(folders[1], adapter_name="b")
    other = other.double()
    compose_lora(model, states, weights)
    said = {}
    for kind in ("cat", "linear"):
        other.add_weighted_adapter(["a", "b"], weights, kind, combination_type=kind)
        other.set_adapter(kind)
        said[kind] = logits(other)
    close(model(TOKENS), said["cat"])
    assert (said["linear"] - said["cat"]).abs().max() > 0.01  # cross terms


def test_ia3_is_theirs(ours, theirs):
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    other = shaken(peft.get_peft_model(theirs, config))
    model = apply_ia3(ours)
    for name, parameter in other.named_parameters():
        if "ia3_l" in name:
            layer = name.removeprefix("base_model.model.model.").split(".ia3_l")[0]
            model.get_submodule(layer).scale.data = parameter.data.flatten().clone()
    close(model(TOKENS), logits(other))
    next_token_loss(model(TOKENS), TOKENS).backward()
    other(TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in other.named_parameters():
        if "ia3_l" in name:
            layer = name.removeprefix("base_model.model.model.").split(".ia3_l")[0]
            grad = model.get_submodule(layer).scale.grad
            close(grad, parameter.grad.flatten(), rtol=1e-4)


def rotated_back(k, model, P):
    """Their prefix keys, for tokens that are counted from 0 and not from P."""
    from minillm.model.attention import apply_rope

    turn = model.rotations[P : P + 1].conj().expand(k.shape[1], -1, -1)[None]
    pairs = apply_rope(k.float().transpose(0, 1)[None], turn)[0].transpose(0, 1)
    return torch.cat([pairs[..., 0::2], pairs[..., 1::2]], dim=-1).double()


def test_a_prefix_is_theirs_up_to_a_rotation_of_the_keys(ours, theirs):
    P = 3
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    other = shaken(peft.get_peft_model(theirs, config), 3).double()
    table = other.prompt_encoder["default"].embedding.weight  # P, 2 L H D
    model = apply_prefix(ours, P)
    H, D, L = SHAPE.n_kv_head, SHAPE.head_dim, SHAPE.n_layer
    kv = table.data.view(P, 2 * L, H, D).permute(1, 2, 0, 3)  # k, v of each layer
    for i, block in enumerate(model.layers):
        k = rotated_back(kv[2 * i], model, P)
        # here pairs stand side by side after RoPE, so the prefix has them so, too
        k = torch.stack(k.chunk(2, dim=-1), dim=-1).flatten(-2)
        block.self_attn.kv.data = torch.stack([k, kv[2 * i + 1]])
    close(model(TOKENS), logits(other), rtol=1e-4)


def test_a_soft_prompt_is_theirs(ours, theirs):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    other = shaken(peft.get_peft_model(theirs, config), 3).double()
    ids = apply_prompt(ours, 3)
    vectors = other.prompt_encoder["default"].embedding.weight.data
    ours.embed_tokens.prompt.data = vectors.clone()
    rows = torch.cat([torch.tensor([ids] * 2), TOKENS], dim=1)
    close(ours(rows), logits(other), rtol=1e-4)


def test_the_config_says_what_peft_wants_to_know(ours, tmp_path):
    folder = save_lora(apply_lora(ours, 3, 6, TARGETS), tmp_path, base="some/llama")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/llama"
    assert peft.LoraConfig.from_pretrained(folder).r == 3
