r"""Integers on an even grid: the quantizer below GPTQ, AWQ and most files.

In a group of weights, a step (scale) and the code that stands for 0 (zero-point):

.. math:: c = clamp(round(w / s) + z, \, 0, \, 2^b - 1), \qquad \hat w = s (c - z)

.. math:: s = \frac{\max(w, 0) - \min(w, 0)}{2^b - 1}, \quad z = round(-\min(w, 0) / s)

*Asymmetric*: the grid reaches from the smallest weight to the largest, wherever 0 lies.
*Symmetric*: it is centred, z is the middle, and needs no place. Rounding each weight to
its nearest code is RTN, the baseline of every method: none of them changes the grid
much, they change which code is taken.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 2.1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from minillm.compression.bits import pack_bits, unpack_bits
from minillm.errors import require, require_count

LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Grid:
    """How a quantizer is laid out.

    Args:
        bits: of a code, 2 to 8.
        group: weights of a row that share a scale; None is the whole row.
        symmetric: centre the grid on 0.

    Raises:
        ValueError: bits outside 2..8, a group that is no count.

    >>> Grid(bits=4, group=64).stored_bits(4096)   # 16 for the scale, 4 for the zero
    4.3125
    """

    bits: int = 4
    group: int | None = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        inside = type(self.bits) is int and 2 <= self.bits <= 8
        require(inside, "bits", self.bits, "in 2..8", "4 is usual")
        require_count(group=1 if self.group is None else self.group)

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def size(self, columns: int) -> int:
        """Weights of a group in a row of so many columns.

        Raises:
            ValueError: groups that do not divide the row.
        """
        size = columns if self.group is None else min(self.group, columns)
        need, remedy = f"a divisor of {columns} columns", "choose another group"
        require(columns % size == 0, "group", self.group, need, remedy)
        return size

    def stored_bits(self, columns: int) -> float:
        """Bits a weight, with scales in 16 bits and zero-points in as many as codes."""
        zero = 0 if self.symmetric else self.bits
        return self.bits + (16 + zero) / self.size(columns)

    def steps(
        self, weight: Float[Tensor, "*N g"]
    ) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
        """Scale and zero-point of groups of weights, one group along the last axis."""
        low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        # Sixteen bits are what a file has for it, so codes are chosen for that number.
        scale = ((high - low) / self.top).clamp(max=LARGEST).half().to(weight.dtype)
        scale = torch.where(scale == 0, 1.0, scale)  # a group of zeros
        if self.symmetric:
            return scale, torch.full_like(scale, (self.top + 1) // 2)
        return scale, (-low / scale).round().clamp(max=self.top)

    def codes(
        self, weight: Float[Tensor, "*N"], scale: Tensor, zero: Tensor
    ) -> Float[Tensor, "*N"]:
        """The nearest codes, as floats."""
        return ((weight / scale).round() + zero).clamp(0, self.top)


@dataclass(frozen=True)
class Grouped:
    """A matrix on a grid: codes, and scale and zero-point of each group of each row.

    Args:
        packed: codes of the weights, without a bit to spare.
        scales: of the groups.
        packed_zeros: zero-points of the groups; None on a symmetric grid.
        groups: of which group each column is; None if groups are neighbours.
        columns: N.
        bits: of a code.
    """

    packed: UInt8[Tensor, " bytes"]
    scales: Float16[Tensor, "M G"]
    packed_zeros: UInt8[Tensor, " bytes"] | None
    groups: Int[Tensor, " N"] | None
    columns: int
    bits: int

    @property
    def codes(self) -> UInt8[Tensor, "M N"]:
        """One to a byte, in the matrix's own order of columns."""
        shape = (len(self.scales), self.columns)
        return unpack_bits(self.packed, self.bits, math.prod(shape)).view(shape)

    @property
    def zeros(self) -> UInt8[Tensor, "M G"]:
        """The code that stands for 0, of each group."""
        if self.packed_zeros is None:
            return torch.full_like(self.scales, 2 ** (self.bits - 1), dtype=torch.uint8)
        n = self.scales.numel()
        return unpack_bits(self.packed_zeros, self.bits, n).view_as(self.scales)

    @property
    def group_of(self) -> Int[Tensor, " N"]:
        """Of which group each column is."""
        size = self.columns // self.scales.shape[1]
        neighbours = torch.arange(self.columns, device=self.packed.device) // size
        return neighbours if self.groups is None else self.groups

    def weight(self) -> Float[Tensor, "M N"]:
        """What the codes stand for."""
        scales, zeros = (x.float()[:, self.group_of] for x in (self.scales, self.zeros))
        return scales * (self.codes - zeros)


def grouped(
    codes: Float[Tensor, "M N"],
    scales: Float[Tensor, "M G"],
    zeros: Float[Tensor, "M G"],
    grid: Grid,
    groups: Int[Tensor, " N"] | None = None,
) -> Grouped:
    """Hold codes and what belongs to them in as few bits as they need."""
    kept = None if grid.symmetric else pack_bits(zeros, grid.bits)
    packed, N = pack_bits(codes, grid.bits), codes.shape[1]
    return Grouped(packed, scales.half(), kept, groups, N, grid.bits)


def quantize_rtn(weight: Float[Tensor, "M N"], grid: Grid) -> Grouped:
    """Round each weight to the nearest code.

    Raises:
        ValueError: not a finite matrix, groups that do not divide its rows.

    >>> q = quantize_rtn(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), Grid(2, None))
    >>> q.weight()
    tensor([[0., 1., 2., 3.]])
    """
    require_matrix(weight)
    M, N = weight.shape
    size = grid.size(N)
    groups = weight.detach().float().view(M, -1, size)
    scales, zeros = grid.steps(groups)
    codes = grid.codes(groups, scales[..., None], zeros[..., None]).view(M, N)
    return grouped(codes, scales, zeros, grid)


def require_matrix(weight: Tensor) -> None:
    """Require a finite matrix with at least one weight and a scale in 16 bits.

    >>> require_matrix(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: weight must be a finite matrix, got (3,) of torch.float32; quantize ...
    """
    fine = weight.ndim == 2 and weight.numel() > 0
    fine = fine and bool((weight.abs() <= LARGEST).all())  # NaN is not, either
    remedy = "quantize one layer at a time, and look for NaN"
    require(fine, "weight", weight, "a finite matrix", remedy)
