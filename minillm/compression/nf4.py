r"""Four bits a weight: blocks with a scale each, codes two to a byte.

.. math:: w_i \approx s_b \, q_{c_i}, \qquad s_b = \max_{i \in b} |w_i|, \quad
          c_i = \arg\min_c |w_i / s_b - q_c|

Small blocks, because one outlier makes all of its block coarse; not too small, because
a scale takes 32 bits: with 64 weights to a block that is half a bit a weight. *Double
quantization* stores the scales in 8 bits in their turn, less their mean, in blocks of
256 with a scale each:

.. math:: 4 + \frac{8}{64} + \frac{32}{64 \cdot 256} = 4.127 \text{ bits}
          \quad \text{and not} \quad 4 + \frac{32}{64} = 4.5

Source: Dettmers et al. 2023 (QLoRA, arXiv:2305.14314), section 3. Codes and layout are
those of bitsandbytes: the first weight is in the high half of a byte.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from minillm.compression.bits import room
from minillm.compression.codebooks import NF4_LEVELS, dynamic_map, nearest
from minillm.errors import require, require_count

NESTED_BLOCK = 256
DYNAMIC = dynamic_map()
AT_ONCE = 2**16  # bytes, whose indices stay in the cache


@dataclass(frozen=True)
class NestedScales:
    """Scales in 8 bits: code of the dynamic map, times a scale of 256, plus the mean.

    Args:
        codes: one for each block of weights.
        absmax: one for each 256 of them.
        offset: their mean.
    """

    codes: UInt8[Tensor, " blocks"]
    absmax: Float[Tensor, " groups"]
    offset: Float[Tensor, ""]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes

    def values(self) -> Float[Tensor, " blocks"]:
        """The scales."""
        groups = self.absmax.repeat_interleave(NESTED_BLOCK)[: len(self.codes)]
        levels = DYNAMIC.to(self.codes.device)
        return levels[self.codes.int()] * groups + self.offset


@dataclass(frozen=True)
class FourBit:
    """A quantized tensor: what is stored, and what is needed to undo it.

    Args:
        packed: two codes a byte.
        scales: of the blocks.
        levels: of the codes.
        shape: of the tensor.
        block_size: weights that share a scale.
    """

    packed: UInt8[Tensor, " bytes"]
    scales: Float[Tensor, " blocks"] | NestedScales
    levels: Float[Tensor, "16"]
    shape: torch.Size
    block_size: int

    @property
    def nbytes(self) -> int:
        """Bytes that are held; the 16 levels are everybody's and not counted."""
        return self.packed.nbytes + self.scales.nbytes

    @property
    def bits(self) -> float:
        """Bits that are held for each weight."""
        return 8 * self.nbytes / max(self.shape.numel(), 1)

    def weight(self) -> Float[Tensor, "*shape"]:
        """What the codes stand for."""
        return dequantize_nf4(self)


def quantize_nf4(
    weight: Float[Tensor, "*shape"],
    block_size: int = 64,
    double_quant: bool = False,
    levels: Float[Tensor, "16"] = NF4_LEVELS,
) -> FourBit:
    """Quantize to four bits in blocks.

    Args:
        weight: of any shape; blocks run along its last dimension and over the ends of
            rows. The last one may be shorter.
        block_size: weights that share a scale.
        double_quant: store the scales in 8 bits.
        levels: ``FP4_LEVELS`` for that one.

    Raises:
        ValueError: weights that are not finite or not floats, an empty tensor, a block
            size that is no count.

    >>> q = quantize_nf4(torch.randn(128, 128), double_quant=True)
    >>> round(q.bits, 2)
    4.13
    """
    require_count(block_size=block_size)
    ok = weight.is_floating_point() and weight.numel() > 0
    require(ok, "weight", weight, "floats, at least one", "quantize weights only")
    flat = weight.detach().flatten().float()
    scales = block_scales(flat, block_size)
    finite, remedy = bool(scales.isfinite().all()), "find the NaN or infinite weights"
    require(finite, "weight", weight, "finite", remedy)
    x = normalised(flat, scales, block_size)
    if len(x) % 2:  # two to a byte; bitsandbytes fills up with a zero, too
        x = torch.cat([x, x.new_zeros(1)])
    codes = nearest(x, levels.to(x.device))
    kept = nest(scales) if double_quant else scales
    return FourBit(pack(codes), kept, levels, weight.shape, block_size)


def dequantize_nf4(quantized: FourBit) -> Float[Tensor, "*shape"]:
    """The weights that the codes stand for, in float32.

    A byte is two codes, so it is looked up once, in a table of 256 pairs.

    >>> weight = torch.tensor([1.0, -1.0, 0.0, 0.1])
    >>> dequantize_nf4(quantize_nf4(weight))
    tensor([ 1.0000, -1.0000,  0.0000,  0.0796])
    """
    q, device = quantized, quantized.packed.device
    levels, byte = q.levels.to(device), torch.arange(256, device=device)
    pairs = torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1)
    # Two floats travel as one double: a table of numbers is read faster than of rows.
    table, flat = pairs.view(torch.float64).flatten(), room(2 * len(q.packed), device)
    parts = (x.split(AT_ONCE) for x in (q.packed, flat.view(torch.float64)))
    for codes, out in zip(*parts, strict=True):
        torch.index_select(table, 0, codes.int(), out=out)
    flat = flat[: q.shape.numel()]
    scales = q.scales.values() if isinstance(q.scales, NestedScales) else q.scales
    return scale_(flat, scales, q.block_size).view(q.shape)


def block_scales(flat: Float[Tensor, " n"], size: int) -> Float[Tensor, " blocks"]:
    """The largest magnitude of each block; the last block may be short."""
    whole = len(flat) // size * size
    scales = flat[:whole].view(-1, size).abs().amax(1)
    if whole < len(flat):
        scales = torch.cat([scales, flat[whole:].abs().amax()[None]])
    return scales


def scale_(
    flat: Float[Tensor, " n"], scales: Float[Tensor, " blocks"], size: int
) -> Float[Tensor, " n"]:
    """Multiply each block by its scale, in place: memory costs more than the product.

    >>> scale_(torch.ones(3), torch.tensor([3.0, 2.0]), 2)
    tensor([3., 3., 2.])
    """
    whole = len(flat) // size * size
    flat[:whole].view(-1, size).mul_(scales[: whole // size, None])
    flat[whole:].mul_(scales[whole // size :])
    return flat


def normalised(
    flat: Float[Tensor, " n"], scales: Float[Tensor, " blocks"], size: int
) -> Float[Tensor, " n"]:
    """Divide each block by its scale: -1 to 1. A block of zeros stays one."""
    return scale_(flat.clone(), 1 / torch.where(scales == 0, 1.0, scales), size)


def pack(codes: UInt8[Tensor, " n"]) -> UInt8[Tensor, " bytes"]:
    """Two codes of four bits to a byte, the first in the high half.

    >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8))   # 0x12, 0x30
    tensor([18, 48], dtype=torch.uint8)
    """
    return (codes[0::2] << 4) | codes[1::2]


def nest(scales: Float[Tensor, " blocks"]) -> NestedScales:
    """Quantize the scales in their turn."""
    offset = scales.mean()
    rest = scales - offset
    absmax = block_scales(rest, NESTED_BLOCK)
    codes = nearest(normalised(rest, absmax, NESTED_BLOCK), DYNAMIC.to(rest.device))
    return NestedScales(codes, absmax, offset)
