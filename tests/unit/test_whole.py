"""Whole models in fewer bits, and the count of the bits that they hold."""

import copy
import math

import pytest
import torch
from torch import nn

from minillm.compression.awq import awq
from minillm.compression.codebooks import FP4_LEVELS
from minillm.compression.floats import round_floats
from minillm.compression.gptq import gptq
from minillm.compression.int8 import quantize_int8
from minillm.compression.linear import HeldLinear, held_bytes
from minillm.compression.nf4 import quantize_nf4
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.compression.whole import quantize_model, stored_bits
from minillm.model import GPT, GPTConfig

C, F = 64, 192  # widths of the stream and of the feed-forward layer
SHAPE = GPTConfig(40, n_layer=1, n_head=4, n_embd=C, n_hidden=F, context=16)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])
ROWS = 4 * C + 2 * F + C  # of all layers
WEIGHTS = 4 * C * C + 3 * C * F
BLOCKS = WEIGHTS / 64
# GPTQ in another order keeps, in 32 bits, each column's group; AWQ its scale, in 16.
COLUMNS = 6 * C + F
ASYMMETRIC, SYMMETRIC = Grid(3, 64), Grid(4, 64, symmetric=True)

QUANTIZERS = {  # each with the bits that the layers take by the format's own formula
    "bfloat16": (lambda w, x: round_floats(w, torch.bfloat16), 16 * WEIGHTS),
    "float8": (
        lambda w, x: round_floats(w, torch.float8_e4m3fn),
        8 * WEIGHTS + 32 * ROWS,
    ),
    "int8": (lambda w, x: quantize_int8(w), 8 * WEIGHTS + 32 * ROWS),
    "nf4": (lambda w, x: quantize_nf4(w), 4 * WEIGHTS + 32 * BLOCKS),
    "fp4": (lambda w, x: quantize_nf4(w, 32, levels=FP4_LEVELS), 5 * WEIGHTS),
    "nested": (  # in each of 7 layers a mean and one scale of at most 256 blocks
        lambda w, x: quantize_nf4(w, double_quant=True),
        4 * WEIGHTS + 8 * BLOCKS + 7 * 64,
    ),
    "rtn": (lambda w, x: quantize_rtn(w, ASYMMETRIC), (3 + 19 / 64) * WEIGHTS),
    "rtn, symmetric": (lambda w, x: quantize_rtn(w, SYMMETRIC), 4.25 * WEIGHTS),
    "gptq": (lambda w, x: gptq(w, x.hessian, SYMMETRIC), 4.25 * WEIGHTS),
    "act-order": (
        lambda w, x: gptq(w, x.hessian, SYMMETRIC, act_order=True),
        4.25 * WEIGHTS + 32 * COLUMNS,
    ),
    "awq": (lambda w, x: awq(w, x, SYMMETRIC), 4.25 * WEIGHTS + 16 * COLUMNS),
}


def plain():
    torch.manual_seed(0)
    return GPT(SHAPE)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_holds_the_bits_that_its_formula_says(name):
    quantizer, bits = QUANTIZERS[name]
    floats = plain()
    rest = stored_bits(floats).bits - 32 * WEIGHTS
    model = quantize_model(plain(), quantizer, [TOKENS])
    found = stored_bits(model)
    assert found.bits - rest == bits
    assert found.weights == stored_bits(floats).weights
    assert found.weights == sum(p.numel() for p in floats.parameters())
    layers = [m for m in model.modules() if isinstance(m, HeldLinear)]
    assert 8 * sum(layer.nbytes for layer in layers) == bits
    saved = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    assert sum(t.nbytes for t in saved.values()) == held_bytes(model)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantized_model_is_the_plain_one_with_other_weights(name):
    model = quantize_model(plain(), QUANTIZERS[name][0], [TOKENS])
    floats = plain()
    for place, layer in model.named_modules():
        if isinstance(layer, HeldLinear):
            floats.get_submodule(place).weight.data = layer.weight.float()
    torch.testing.assert_close(model(TOKENS), floats(TOKENS), rtol=1e-5, atol=1e-5)
    again = quantize_model(GPT(SHAPE), QUANTIZERS[name][0], [TOKENS])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert torch.equal(copy.deepcopy(model)(TOKENS), model(TOKENS))


def test_only_the_layers_that_are_named_are_quantized():
    model = quantize_model(plain(), lambda w, x: quantize_nf4(w), targets="up_proj")
    kinds = {n for n, m in model.named_modules() if isinstance(m, HeldLinear)}
    assert kinds == {"layers.0.mlp.up_proj"}


def test_a_bias_is_kept_and_counted():
    model = nn.Sequential(nn.Linear(64, 8))
    bias = model[0].bias.clone()
    quantize_model(model, lambda w, x: quantize_nf4(w))
    assert torch.equal(model[0].bias, bias)
    assert stored_bits(model).bits == 64 * 8 * 4.5 + 8 * 32
    assert stored_bits(model).weights == 64 * 8 + 8


def test_what_cannot_be_quantized_is_refused_and_the_model_stays_as_it_was():
    model = plain()
    with pytest.raises(ValueError, match="q_proj"):  # what there is
        quantize_model(model, lambda w, x: quantize_nf4(w), targets="query")
    with pytest.raises(ValueError, match="divisor of 64"):
        quantize_model(model, lambda w, x: quantize_rtn(w, Grid(4, 5)))
    with pytest.raises(ValueError, match="batches must be text"):
        quantize_model(model, lambda w, x: gptq(w, x.hessian))
    model.layers[0].mlp.down_proj.weight.data[0, 0] = math.nan  # the last one
    for quantizer, _ in QUANTIZERS.values():
        with pytest.raises(ValueError, match="finite"):
            quantize_model(model, quantizer, [TOKENS])
    assert not any(isinstance(m, HeldLinear) for m in model.modules())
    model = quantize_model(plain(), lambda w, x: quantize_nf4(w))
    with pytest.raises(ValueError, match="quantize once"):
        quantize_model(model, lambda w, x: quantize_nf4(w))
    layer = model.layers[0].mlp.up_proj
    with pytest.raises(ValueError, match="once"):
        HeldLinear(layer, layer.held)
    for other in (quantize_nf4(torch.ones(2, 2)), torch.ones(8, 8)):
        with pytest.raises(ValueError, match="held"):
            HeldLinear(nn.Linear(8, 8), other)


# Floats


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_rows_of_eight_bit_floats_use_the_whole_format(dtype):
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 50, generator=dice) * 10.0 ** torch.arange(-6, 0)[:, None]
    q = round_floats(weight, dtype)
    assert (q.values.float().abs().amax(1) == torch.finfo(dtype).max).all()
    # half of the last place of the mantissa, and of the smallest subnormal
    most = weight.abs().amax(1, keepdim=True)
    x, off = (weight / most).abs(), (q.weight() - weight).abs() / most
    assert (off <= torch.finfo(dtype).eps / 2 * x + 1e-5).all()


def test_floats_refuse_what_they_cannot_hold():
    assert (round_floats(torch.zeros(2, 3), torch.float8_e4m3fn).weight() == 0).all()
    for dtype in (torch.float16, torch.float8_e5m2, torch.bfloat16):
        for weight in (torch.full((1, 2), math.inf), torch.ones(3), torch.zeros(0, 2)):
            with pytest.raises(ValueError, match="finite matrix"):
                round_floats(weight, dtype)
    with pytest.raises(ValueError, match="bfloat16"):
        round_floats(torch.full((1, 2), 1e6), torch.float16)
    with pytest.raises(ValueError, match="dtype"):
        round_floats(torch.ones(1, 2), torch.int8)
