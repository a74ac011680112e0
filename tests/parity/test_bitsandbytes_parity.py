"""Stored codes beside those of bitsandbytes 0.50, on the CPU."""

import pytest
import torch

from minillm.compression.codebooks import FP4_LEVELS, NF4_LEVELS, dynamic_map
from minillm.compression.int8 import quantize_int8
from minillm.compression.nf4 import NestedScales, dequantize_nf4, quantize_nf4

bnb = pytest.importorskip("bitsandbytes")
F = pytest.importorskip("bitsandbytes.functional")
LEVELS = {"nf4": NF4_LEVELS, "fp4": FP4_LEVELS}


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def theirs(weight, kind, nested, block_size=64):
    settings = {"compress_statistics": nested, "quant_type": kind}
    return F.quantize_4bit(weight, blocksize=block_size, **settings)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_codebook_is_theirs(kind):
    code = F.get_4bit_type(kind, device="cpu")
    torch.testing.assert_close(LEVELS[kind], code, rtol=0, atol=1e-6)


def test_the_dynamic_map_is_theirs():
    torch.testing.assert_close(dynamic_map(), F.create_dynamic_map(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(128, 256), (3, 50), (1, 65)])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("kind", LEVELS)
def test_packed_bytes_and_scales_are_theirs(kind, block_size, shape):
    weight = weights(*shape)
    packed, state = theirs(weight, kind, False, block_size)
    ours = quantize_nf4(weight, block_size, levels=LEVELS[kind])
    assert torch.equal(ours.packed, packed.flatten())
    assert torch.equal(ours.scales, state.absmax)
    back = F.dequantize_4bit(packed, state)
    torch.testing.assert_close(dequantize_nf4(ours), back, rtol=1e-6, atol=1e-7)


def test_nested_statistics_are_theirs():
    weight = weights(512, 256)
    packed, state = theirs(weight, "nf4", True)
    ours = quantize_nf4(weight, double_quant=True)
    assert torch.equal(ours.packed, packed.flatten())
    scales: NestedScales = ours.scales
    torch.testing.assert_close(scales.offset, state.offset, rtol=1e-6, atol=0)
    torch.testing.assert_close(scales.absmax, state.state2.absmax, rtol=1e-5, atol=0)
    # the mean is summed in another order, so a scale at a boundary may fall elsewhere
    assert (scales.codes != state.absmax).float().mean() < 0.01
    back = F.dequantize_4bit(packed, state)
    torch.testing.assert_close(dequantize_nf4(ours), back, rtol=1e-2, atol=1e-2)


def test_rows_of_int8_are_theirs():
    x = weights(16, 64)
    codes, steps, _ = F.int8_vectorwise_quant(x.half())
    ours = quantize_int8(x.half().float())
    assert (ours.codes.int() - codes.int()).abs().max() <= 1  # ties, in half precision
    assert (ours.codes != codes).float().mean() < 0.01
    largest = steps.float().flatten()
    torch.testing.assert_close(ours.steps * 127, largest, rtol=1e-3, atol=0)
