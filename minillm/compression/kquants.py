r"""Blocks and superblocks: how weights lie in a GGUF file, byte for byte.

*Q8_0* and *Q4_0* are the plain ones: 32 weights, a scale in float16, codes of 8 or 4
bits; 8.5 and 4.5 bits a weight. The k-quants spend fewer bits on the scales. Blocks are
gathered in superblocks of 256 weights, and the scales are themselves small integers:

.. math:: Q4\_K: \; \hat w = d \, s_b \, c - d_{min} \, m_b, \qquad
          Q6\_K: \; \hat w = d \, s_b \, (c - 32)

In Q4_K eight blocks of 32 have each a scale s and a minimum m of 6 bits,

.. math:: (256 \cdot 4 + 8 \cdot 2 \cdot 6 + 2 \cdot 16) / 256 = 4.5 \text{ bits}

which is what Q4_0 takes without a minimum. In Q6_K sixteen blocks of 16 have a scale of
8 bits each: 6.5625. Nobody has to look at any text for them.

Source: ``ggml-quants.c`` of llama.cpp, of which there is no paper. Differs from it:
Q4_K and Q6_K take their scales from the extremes of each block, and llama.cpp searches
for better ones; it reads what is written here, and Q4_0 and Q8_0 are its very bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minillm.compression.uniform import require_matrix
from minillm.errors import require, require_one_of


@dataclass(frozen=True)
class Blocks:
    """A matrix in one of the formats of GGUF.

    Args:
        data: the bytes of each block, in the order of the weights.
        kind: Q4_0, Q8_0, Q4_K or Q6_K.
        shape: of the matrix.
    """

    data: UInt8[Tensor, "blocks bytes"]
    kind: str
    shape: torch.Size

    def weight(self) -> Float[Tensor, "M N"]:
        """What the bytes stand for."""
        return KINDS[self.kind].decode(self.data).view(self.shape)


def quantize_gguf(weight: Float[Tensor, "M N"], kind: str = "Q4_K") -> Blocks:
    """Quantize a matrix to the blocks of a GGUF file.

    Args:
        weight: of any float type; blocks run over the ends of rows.
        kind: Q4_0, Q8_0, Q4_K or Q6_K.

    Raises:
        ValueError: not a finite matrix, another kind, blocks that do not divide it.

    >>> q = quantize_gguf(torch.randn(4, 128), "Q4_K")
    >>> q.data.shape, q.data.numel() * 8 / q.weight().numel()
    (torch.Size([2, 144]), 4.5)
    """
    require_one_of(KINDS, kind=kind)
    require_matrix(weight)
    size, need = KINDS[kind].size, f"in blocks of {KINDS[kind].size}"
    remedy = "choose a kind with smaller blocks"
    require(weight.numel() % size == 0, "weight", weight, need, remedy)
    blocks = weight.detach().float().reshape(-1, size)
    return Blocks(KINDS[kind].encode(blocks), kind, weight.shape)


def encode_q8_0(w: Float[Tensor, "n 32"]) -> UInt8[Tensor, "n 34"]:
    """A scale, and 32 codes of 8 bits."""
    d = w.abs().amax(1, keepdim=True) / 127
    codes = w * reciprocal(d)
    codes = codes.sign() * (codes.abs() + 0.5).floor()  # halves away from 0, as C does
    return torch.cat([half(d), codes.to(torch.int8).view(torch.uint8)], dim=1)


def decode_q8_0(data: UInt8[Tensor, "n 34"]) -> Float[Tensor, "n 32"]:
    """d c."""
    return unhalf(data[:, :2]) * data[:, 2:].contiguous().view(torch.int8)


def encode_q4_0(w: Float[Tensor, "n 32"]) -> UInt8[Tensor, "n 18"]:
    """A scale, and 32 codes of 4 bits; the largest weight, with its sign, is -8 d."""
    d = w.gather(1, w.abs().argmax(1, keepdim=True)) / -8
    codes = (w * reciprocal(d) + 8.5).floor().clamp(0, 15)
    return torch.cat([half(d), fold(codes, 4, 16)], dim=1)


def decode_q4_0(data: UInt8[Tensor, "n 18"]) -> Float[Tensor, "n 32"]:
    """d (c - 8)."""
    return unhalf(data[:, :2]) * (unfold(data[:, 2:], 4, 16) - 8)


def encode_q4_k(w: Float[Tensor, "n 256"]) -> UInt8[Tensor, "n 144"]:
    """Two scales of the scales, 8 scales and 8 minima of 6 bits, 256 codes of 4."""
    blocks = w.view(-1, 8, 32)
    low = blocks.amin(2).clamp(max=0)
    steps = (blocks.amax(2).clamp(min=0) - low) / 15
    d, dmin = (unhalf(half(x.amax(1, keepdim=True) / 63)) for x in (steps, -low))
    s, m = (steps * reciprocal(d)).round(), (-low * reciprocal(dmin)).round()
    s, m = s.clamp(max=63), m.clamp(max=63)
    codes = (blocks + (dmin * m)[..., None]) * reciprocal(d * s)[..., None]
    codes = codes.round().clamp(0, 15).flatten(1)
    s, m = s.to(torch.uint8), m.to(torch.uint8)
    # The high two bits of the last four scales and minima go above the first four.
    first = [x[:, :4] | (x[:, 4:] >> 4 << 6) for x in (s, m)]
    scales = torch.cat([*first, s[:, 4:] & 15 | (m[:, 4:] << 4)], dim=1)
    return torch.cat([half(d), half(dmin), scales, fold(codes, 4, 32)], dim=1)


def decode_q4_k(data: UInt8[Tensor, "n 144"]) -> Float[Tensor, "n 256"]:
    """d s c - dmin m."""
    first, second, last = data[:, 4:16].view(-1, 3, 4).unbind(1)
    s = torch.cat([first & 63, last & 15 | (first >> 6 << 4)], dim=1)
    m = torch.cat([second & 63, last >> 4 | (second >> 6 << 4)], dim=1)
    steps, low = unhalf(data[:, :2]) * s, unhalf(data[:, 2:4]) * m
    codes = unfold(data[:, 16:], 4, 32).view(-1, 8, 32)
    return (steps[..., None] * codes - low[..., None]).flatten(1)


def encode_q6_k(w: Float[Tensor, "n 256"]) -> UInt8[Tensor, "n 210"]:
    """256 codes of 6 bits (four, then two), 16 scales of 8, a scale of the scales."""
    blocks = w.view(-1, 16, 16)
    steps = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0] / -32
    d = unhalf(half(steps.gather(1, steps.abs().argmax(1, keepdim=True)) / -128))
    s = (steps * reciprocal(d)).round().clamp(-128, 127)
    codes = (blocks * reciprocal(d * s)[..., None]).round().clamp(-32, 31) + 32
    codes = codes.flatten(1).to(torch.uint8)
    scales = s.to(torch.int8).view(torch.uint8)
    folded = [fold(codes & 15, 4, 64), fold(codes >> 4, 2, 32)]
    return torch.cat([*folded, scales, half(d)], dim=1)


def decode_q6_k(data: UInt8[Tensor, "n 210"]) -> Float[Tensor, "n 256"]:
    """d s (c - 32)."""
    codes = unfold(data[:, :128], 4, 64) + 16 * unfold(data[:, 128:192], 2, 32) - 32
    s = data[:, 192:208].contiguous().view(torch.int8)
    steps = unhalf(data[:, 208:]) * s
    return (steps[..., None] * codes.view(-1, 16, 16)).flatten(1)


class Kind(NamedTuple):
    """Weights of a block, and the way there and back."""

    size: int
    encode: Callable
    decode: Callable


KINDS = {
    "Q4_0": Kind(32, encode_q4_0, decode_q4_0),
    "Q8_0": Kind(32, encode_q8_0, decode_q8_0),
    "Q4_K": Kind(256, encode_q4_k, decode_q4_k),
    "Q6_K": Kind(256, encode_q6_k, decode_q6_k),
}


def fold(codes: Tensor, bits: int, width: int) -> UInt8[Tensor, "n bytes"]:
    """Lay runs of ``width`` codes over one another, the first in the lowest bits.

    >>> fold(torch.tensor([[1, 2, 15, 0]]), bits=4, width=2)   # 1 + 16 * 15, 2 + 16 * 0
    tensor([[241,   2]], dtype=torch.uint8)
    """
    runs = codes.to(torch.uint8).view(len(codes), -1, 8 // bits, width)
    places = bits * torch.arange(8 // bits, device=codes.device)[:, None]
    return (runs.int() << places).sum(2).to(torch.uint8).flatten(1)


def unfold(data: UInt8[Tensor, "n bytes"], bits: int, width: int) -> Int[Tensor, "n k"]:
    """Take them apart again."""
    places = bits * torch.arange(8 // bits, device=data.device)[:, None]
    runs = data.reshape(len(data), -1, 1, width).int() >> places
    return (runs & (2**bits - 1)).flatten(1)


def half(x: Float[Tensor, "n 1"]) -> UInt8[Tensor, "n 2"]:
    """The two bytes of a float16."""
    return x.half().view(torch.uint8)


def unhalf(data: UInt8[Tensor, "n 2"]) -> Float[Tensor, "n 1"]:
    """The number of two bytes, in float32."""
    return data.contiguous().view(torch.float16).float()


def reciprocal(x: Tensor) -> Tensor:
    """1 / x, and 0 for a block of zeros or nearly so."""
    return torch.where(x.abs() < 1e-30, 0.0, 1 / x)
