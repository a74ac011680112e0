"""Four bits and eight: what quantized weights are, and what they cost."""

import math

import pytest
import torch

from minillm.compression.codebooks import (
    FP4_LEVELS,
    NF4_LEVELS,
    dynamic_map,
    nearest,
)
from minillm.compression.int8 import (
    dequantize_int8,
    int8_product,
    llm_int8_linear,
    quantize_int8,
)
from minillm.compression.nf4 import dequantize_nf4, pack, quantize_nf4

# Dettmers et al. 2023, appendix E
PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_levels_of_nf4_are_the_published_ones():
    torch.testing.assert_close(NF4_LEVELS, torch.tensor(PUBLISHED), rtol=0, atol=1e-6)


def test_zero_is_a_level_of_every_codebook():
    for levels in (NF4_LEVELS, FP4_LEVELS, dynamic_map()):
        assert (levels == 0).any()
    assert len(dynamic_map()) == 256 == len(dynamic_map().unique())


def test_what_is_a_level_already_comes_back_bit_for_bit():
    for levels in (NF4_LEVELS, FP4_LEVELS):
        weight = 3.0 * levels
        again = dequantize_nf4(quantize_nf4(weight, 16, levels=levels))
        torch.testing.assert_close(again, weight, rtol=0, atol=0)


def test_each_weight_gets_the_nearest_level():
    weight = normal(7, 64)
    q = dequantize_nf4(quantize_nf4(weight))
    scales = weight.abs().amax(1, keepdim=True)
    distances = (weight / scales)[..., None] - NF4_LEVELS
    best = NF4_LEVELS[distances.abs().argmin(-1)] * scales
    torch.testing.assert_close(q, best, rtol=0, atol=1e-6)


def test_nearest_does_not_mind_the_order_of_the_codes():
    x, shuffle = normal(500), torch.randperm(16)
    levels = NF4_LEVELS[shuffle]
    found, plain = (L[nearest(x, L).int()] for L in (levels, NF4_LEVELS))
    assert torch.equal(found, plain)


def test_the_largest_weight_of_a_block_is_kept_exactly():
    weight = normal(32, 64)
    q = dequantize_nf4(quantize_nf4(weight))
    place = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(q.gather(1, place), weight.gather(1, place))


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129, 16385])
@pytest.mark.parametrize("double_quant", [False, True])
def test_any_number_of_weights_comes_back_in_its_shape(n, double_quant):
    weight = normal(n)
    q = quantize_nf4(weight, double_quant=double_quant)
    again = dequantize_nf4(q)
    assert again.shape == weight.shape
    assert len(q.packed) == -(-n // 2)
    # half of the widest gap, and what 8 bits of a scale may be off
    assert ((again - weight).abs() <= 0.16 * weight.abs().max() + 0.02).all()


def test_a_block_of_zeros_stays_zero():
    weight = torch.cat([torch.zeros(64), torch.ones(64)])
    assert torch.equal(dequantize_nf4(quantize_nf4(weight)), weight)


def test_the_first_weight_is_in_the_high_half_of_the_byte():
    q = quantize_nf4(torch.tensor([1.0, -1.0]))
    assert q.packed.tolist() == [0xF0]
    assert pack(torch.arange(4, dtype=torch.uint8)).tolist() == [0x01, 0x23]


def test_bits_are_those_that_are_stored():
    weight = normal(1024, 1024)
    assert quantize_nf4(weight).bits == 4.5
    nested = quantize_nf4(weight, double_quant=True)
    assert nested.bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert nested.nbytes / weight.numel() < 0.53
    assert quantize_nf4(weight, block_size=32).bits == 5


def test_double_quantization_costs_little():
    weight = normal(512, 512)
    once, twice = (
        (dequantize_nf4(quantize_nf4(weight, double_quant=d)) - weight).square().mean()
        for d in (False, True)
    )
    assert once < twice < 1.02 * once


def test_the_error_for_normal_weights_is_the_known_one():
    # ERRATA of the field: .00846 in blocks of 64, and symmetric integers .0116
    weight = normal(2**20, seed=1)
    error = (dequantize_nf4(quantize_nf4(weight)) - weight).square().mean().item()
    assert error == pytest.approx(0.00846, rel=0.02)
    blocks = weight.view(-1, 64)
    step = blocks.abs().amax(1, keepdim=True) / 7
    integers = ((blocks / step).round() * step - blocks).square().mean().item()
    assert integers == pytest.approx(0.0116, rel=0.02)


def test_codes_are_not_used_equally_often():
    # They would be, were the weights normal after the division by their maximum.
    q = quantize_nf4(normal(2**20, seed=1))
    codes = torch.cat([q.packed >> 4, q.packed & 15]).long()
    share = torch.bincount(codes, minlength=16) / len(codes)
    assert share.min() < 0.02
    assert share.max() > 0.09
    entropy = -(share * share.log2()).sum().item()
    assert 3.8 < entropy < 3.95


def test_one_outlier_spoils_its_block_and_no_other():
    weight = normal(2, 64)
    before = dequantize_nf4(quantize_nf4(weight))
    weight[0, 0] = 100
    after = dequantize_nf4(quantize_nf4(weight))
    assert (after[0, 1:] == 0).all()
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize(
    ("weight", "settings", "words"),
    [
        (torch.tensor([1.0, math.nan]), {}, "finite"),
        (torch.tensor([1.0, math.inf]), {}, "finite"),
        (torch.tensor([1, 2]), {}, "floats"),
        (torch.zeros(0), {}, "at least one"),
        (torch.ones(4), {"block_size": 0}, "block_size"),
        (torch.ones(4), {"block_size": 2.0}, "block_size"),
    ],
)
def test_bad_input_is_refused(weight, settings, words):
    with pytest.raises(ValueError, match=words):
        quantize_nf4(weight, **settings)


def test_half_precisions_are_quantized_as_what_they_are():
    weight = normal(8, 64).bfloat16()
    again = dequantize_nf4(quantize_nf4(weight))
    assert torch.equal(again, dequantize_nf4(quantize_nf4(weight.float())))


# Eight bits


def test_rounding_to_eight_bits_is_off_by_half_a_step_at_most():
    x = normal(6, 50).double()
    q = quantize_int8(x)
    assert ((dequantize_int8(q) - x).abs() <= q.steps[:, None] / 2 + 1e-12).all()
    assert q.codes.abs().amax(1).eq(127).all()


def test_the_product_of_integers_is_the_product_of_what_they_stand_for():
    a, b = (quantize_int8(normal(n, 300).double()) for n in (5, 4))
    expected = dequantize_int8(a) @ dequantize_int8(b).T
    torch.testing.assert_close(int8_product(a, b), expected, rtol=1e-12, atol=1e-12)


def test_a_row_of_zeros_stays_zero_in_eight_bits():
    assert (dequantize_int8(quantize_int8(torch.zeros(2, 3))) == 0).all()


def test_without_outliers_the_layer_is_the_product_of_integers():
    x, w = normal(5, 64).clamp(-5, 5), quantize_int8(normal(8, 64))
    torch.testing.assert_close(llm_int8_linear(x, w), int8_product(quantize_int8(x), w))


def test_outliers_are_multiplied_as_they_are_and_let_the_rest_be_heard():
    x, weight = normal(5, 64).clamp(-3, 3), normal(8, 64)
    x[2, 7] = 80.0
    w, exact = quantize_int8(weight), x @ dequantize_int8(quantize_int8(weight)).T
    plain = (int8_product(quantize_int8(x), w) - exact)[2].norm()
    mixed = (llm_int8_linear(x, w) - exact)[2].norm()
    assert mixed < plain / 5


def test_the_threshold_is_a_magnitude_and_it_counts_from_there_on():
    x = torch.full((1, 4), 0.01)
    x[0, 1] = 6.0
    w = quantize_int8(torch.eye(4))
    assert llm_int8_linear(x, w)[0, 0] == pytest.approx(0.01, rel=1e-5)
    assert llm_int8_linear(x, w, threshold=6.1)[0, 0] == 0


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.tensor([[math.nan]]), torch.zeros(2, 0)]
)
def test_eight_bits_refuse_what_is_no_finite_matrix(x):
    with pytest.raises(ValueError, match="finite matrix"):
        quantize_int8(x)
    with pytest.raises(ValueError, match="threshold"):
        llm_int8_linear(torch.ones(1, 1), quantize_int8(torch.ones(1, 1)), threshold=0)
