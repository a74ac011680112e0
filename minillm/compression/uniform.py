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

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minillm.errors import require, require_count


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
        scale = (high - low) / self.top
        scale = torch.where(scale == 0, 1.0, scale)  # a group of zeros
        middle = torch.full_like(scale, (self.top + 1) // 2)
        return scale, middle if self.symmetric else (-low / scale).round()

    def codes(
        self, weight: Float[Tensor, "*N"], scale: Tensor, zero: Tensor
    ) -> Float[Tensor, "*N"]:
        """The nearest codes, as floats."""
        return ((weight / scale).round() + zero).clamp(0, self.top)


@dataclass(frozen=True)
class Grouped:
    """A matrix on a grid: codes, and scale and zero-point of each group of each row.

    Args:
        codes: of the weights, in the matrix's own order of columns.
        scales, zeros: of the groups.
        group_of: of which group each column is; groups need not be neighbours.
        bits: of a code.
    """

    codes: UInt8[Tensor, "M N"]
    scales: Float[Tensor, "M G"]
    zeros: Float[Tensor, "M G"]
    group_of: Int[Tensor, " N"]
    bits: int

    def weight(self) -> Float[Tensor, "M N"]:
        """What the codes stand for."""
        scales, zeros = self.scales[:, self.group_of], self.zeros[:, self.group_of]
        return scales * (self.codes - zeros)


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
    group_of = torch.arange(N, device=weight.device) // size
    return Grouped(codes.to(torch.uint8), scales, zeros, group_of, grid.bits)


def require_matrix(weight: Tensor) -> None:
    """Require a finite matrix with at least one weight.

    >>> require_matrix(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: weight must be a finite matrix, got (3,) of torch.float32; quantize ...
    """
    fine = weight.ndim == 2 and weight.numel() > 0 and bool(weight.isfinite().all())
    remedy = "quantize one layer at a time, and look for NaN"
    require(fine, "weight", weight, "a finite matrix", remedy)
