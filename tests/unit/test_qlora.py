"""A base in four bits, and a LoRA that learns beside it."""

import copy

import pytest
import torch
from torch import nn

from minillm.compression.linear import NF4Linear, held_bytes
from minillm.compression.nf4 import dequantize_nf4, quantize_nf4
from minillm.finetuning.adapted import count_trainable, merge
from minillm.finetuning.lora import LoRALinear, apply_lora, lora_layers
from minillm.finetuning.lora_state import lora_state
from minillm.finetuning.qlora import (
    QLoRALinear,
    apply_qlora,
    loftq_start,
    merged_floats,
)
from minillm.model import GPT, GPTConfig
from minillm.training import next_token_loss

SHAPE = GPTConfig(40, n_layer=2, n_head=4, n_embd=32, context=32)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])


def plain(seed=0):
    torch.manual_seed(seed)
    return GPT(SHAPE)


def quantized_floats(model):
    """A plain model whose layers hold what NF4 makes of them."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            q = quantize_nf4(layer.weight, double_quant=True)
            layer.weight.data = dequantize_nf4(q)
    return model


def shaken(model):
    dice = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=dice)
    return model


def test_a_layer_in_four_bits_is_the_layer_of_the_weight_that_it_holds():
    torch.manual_seed(0)
    linear = nn.Linear(48, 20)
    layer = NF4Linear(linear)
    weight = dequantize_nf4(quantize_nf4(linear.weight, double_quant=True))
    x = torch.randn(3, 48, requires_grad=True)
    expected = nn.functional.linear(x, weight, linear.bias)
    torch.testing.assert_close(layer(x), expected)
    g = torch.randn(3, 20)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), x, g)[0], torch.autograd.grad(expected, x, g)[0]
    )


def test_no_weight_of_floats_is_kept_for_the_backward_pass():
    layer, kept = NF4Linear(nn.Linear(256, 256, bias=False)), []
    x = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        layer(x).sum().backward()
    assert sum(t.numel() for t in kept) < 256 * 256


def test_a_layer_in_four_bits_is_saved_and_loaded():
    torch.manual_seed(0)
    layer, other = NF4Linear(nn.Linear(48, 20)), NF4Linear(nn.Linear(48, 20))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 48)
    assert torch.equal(layer(x), other(x))


def test_a_new_qlora_is_the_quantized_model():
    model = apply_qlora(plain(), rank=2)
    expected = quantized_floats(plain())(TOKENS)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-6)


def test_it_learns_as_a_lora_on_the_quantized_weights_would():
    q, plain_ = apply_qlora(plain(), rank=2), quantized_floats(plain())
    lora = apply_lora(plain_, rank=2, targets="all")
    for name, layer in lora_layers(q).items():
        other = lora_layers(lora)[name]
        other.lora_A.data = layer.lora_A.data.clone()
    for model in (shaken(q), shaken(lora)):
        next_token_loss(model(TOKENS), TOKENS).backward()
    for name, layer in lora_layers(q).items():
        for factor in ("lora_A", "lora_B"):
            ours, theirs = (
                getattr(m, factor).grad for m in (layer, lora_layers(lora)[name])
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_only_adapters_learn_and_codes_stay():
    model = shaken(apply_qlora(plain(), rank=2))
    before = {n: b.clone() for n, b in model.named_buffers()}
    next_token_loss(model(TOKENS), TOKENS).backward()
    learns = {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"lora_A", "lora_B"}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_the_layers_take_a_seventh_of_their_bytes():
    big = GPT(GPTConfig(40, n_layer=2, n_head=4, n_embd=128))
    layers = sum(m.weight.nbytes for n, m in big.named_modules() if "proj" in n)
    rest = held_bytes(big) - layers
    model = apply_qlora(big, rank=1)
    trained = 4 * count_trainable(model)[0]
    held = held_bytes(model) - rest - trained
    assert held / layers == pytest.approx(4.127 / 32, rel=0.01)


def test_its_adapter_is_an_adapter_like_any_other():
    model = shaken(apply_qlora(plain(), rank=2, targets=("q_proj", "v_proj")))
    assert set(lora_state(model)) == set(lora_state(apply_lora(plain(), rank=2)))
    assert all(isinstance(m, QLoRALinear) for m in lora_layers(model).values())


def test_some_layers_may_stay_in_floats():
    model = apply_qlora(plain(), rank=2, quantized=("up_proj",))
    assert isinstance(model.layers[0].mlp.up_proj, QLoRALinear)
    assert type(model.layers[0].mlp.down_proj) is LoRALinear


def test_merging_into_four_bits_is_refused_and_into_floats_exact():
    model = shaken(apply_qlora(plain(), rank=2))
    with pytest.raises(ValueError, match="merged_floats"):
        merge(model)
    before = model(TOKENS)
    floats = merged_floats(model)
    torch.testing.assert_close(floats(TOKENS), before, rtol=1e-4, atol=1e-5)
    assert set(floats.state_dict()) == set(plain().state_dict())
    assert torch.equal(model(TOKENS), before)  # a copy was merged


def test_merged_into_the_original_base_it_is_another_function():
    model = shaken(apply_qlora(plain(), rank=2))
    wrong = plain()
    for name, layer in lora_layers(model).items():
        wrong.get_submodule(name).weight.data += layer.delta().detach()
    off = (wrong(TOKENS) - model(TOKENS)).norm()
    base = (plain()(TOKENS) - apply_qlora(plain(), rank=2)(TOKENS)).norm()
    assert off > base / 3


def test_quantized_again_after_merging_small_changes_drown():
    torch.manual_seed(0)
    W = torch.randn(256, 256)
    Q = dequantize_nf4(quantize_nf4(W))
    delta = torch.randn(256, 4) @ torch.randn(4, 256)
    delta *= 0.006 * W.norm() / delta.norm()
    again = dequantize_nf4(quantize_nf4(Q + delta))
    assert (again - Q - delta).norm() > 0.7 * delta.norm()


# LoftQ


@pytest.mark.parametrize("double_quant", [False, True])
def test_loftq_begins_closer_to_the_weight_than_rounding(double_quant):
    torch.manual_seed(0)
    W = torch.randn(96, 64)
    rounded = (W - dequantize_nf4(quantize_nf4(W, double_quant=double_quant))).norm()
    errors = []
    for rounds in (1, 5):
        target, A, B = loftq_start(W, 8, 2.0, rounds, double_quant)
        Q = dequantize_nf4(quantize_nf4(target, double_quant=double_quant))
        errors.append((W - Q - 2.0 * B @ A).norm())
    assert errors[1] < errors[0] < 0.95 * rounded


def test_one_round_is_the_best_change_of_that_rank():
    # Eckart and Young: no matrix of rank r is closer to W - Q.
    torch.manual_seed(0)
    W = torch.randn(64, 64)
    rest = W - dequantize_nf4(quantize_nf4(W))
    _, A, B = loftq_start(W, 8, rounds=1)
    best = torch.linalg.svdvals(rest)[8:].norm()
    torch.testing.assert_close((rest - B @ A).norm(), best, rtol=1e-4, atol=0)


def test_a_model_that_begins_with_loftq_is_closer_to_the_original():
    logits = plain()(TOKENS)
    start = apply_qlora(plain(), rank=8, alpha=16)(TOKENS)
    model = apply_qlora(plain(), rank=8, alpha=16, loftq=5)
    assert (model(TOKENS) - logits).norm() < 0.9 * (start - logits).norm()
    layer = model.layers[0].mlp.up_proj
    assert layer.lora_B.abs().max() > 0


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"rank": 0}, {"rank": 9}, {"scaling": 0.0}]
)
def test_loftq_of_nothing_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        loftq_start(torch.randn(8, 8), **({"rank": 2} | settings))


def test_where_some_layers_cannot_merge_none_is_merged_and_none_twice():
    model = shaken(apply_qlora(plain(), rank=2, quantized=("up_proj",)))
    before = model(TOKENS)
    with pytest.raises(ValueError, match="merged_floats"):
        merge(model)
    assert all(layer.plain is None for layer in lora_layers(model).values())
    model.layers[0].mlp.down_proj.merge()
    torch.testing.assert_close(merged_floats(model)(TOKENS), before)


def test_bad_targets_are_refused_before_anything_is_changed():
    model = plain()
    with pytest.raises(ValueError, match="targets"):
        apply_qlora(model, targets="query")
    with pytest.raises(ValueError, match="rank"):
        apply_qlora(model, rank=33)
    assert isinstance(model.layers[0].mlp.up_proj, nn.Linear)


def test_a_layer_is_quantized_once():
    with pytest.raises(ValueError, match="once"):
        NF4Linear(NF4Linear(nn.Linear(8, 8)))
    model = apply_qlora(copy.deepcopy(plain()), rank=2)
    with pytest.raises(ValueError, match="no linear layer"):
        apply_qlora(model, rank=2)
