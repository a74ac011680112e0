r"""AWQ: make the columns that matter larger before rounding, and the inputs smaller.

.. math:: W x = (W \, diag(s)) \, (diag(s)^{-1} x)

is the same before rounding and not after: a column that was scaled up by s is rounded
with a step that is s times as fine, as long as it does not set the step of its group.
Which columns matter is seen in the inputs, not in the weights: those with large
activations. One exponent decides how much they are protected,

.. math:: s_j = a_j^\alpha, \qquad a_j = mean |x_j|, \quad \alpha \in [0, 1]

and is found by trying. At alpha 0 it is plain rounding, so it is never worse than that
on the data that it was tried on. The division of the inputs is folded into the layer
before (a norm, or the layer that makes x), so nothing is paid for it later; here each
layer has scales of its own and keeps them, in 16 bits for each column.

Source: Lin et al. 2023 (AWQ, arXiv:2306.00978), section 3.2, equations 4 and 5.
Differs from the code of its authors: no search for clipping, one layer at a time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from minillm.compression.calibration import Inputs
from minillm.compression.uniform import Grid, Grouped, quantize_rtn, require_matrix
from minillm.errors import require, require_count


@dataclass(frozen=True)
class Scaled:
    """A quantized matrix of scaled columns, and the scales.

    Args:
        quantized: of W diag(s).
        scales: s.
        alpha: the exponent that was best.
    """

    quantized: Grouped
    scales: Float16[Tensor, " N"]
    alpha: float

    def weight(self) -> Float[Tensor, "M N"]:
        """What the layer does to inputs that nobody divided."""
        return self.quantized.weight() / self.scales


@torch.no_grad()
def awq(
    weight: Float[Tensor, "M N"],
    inputs: Inputs,
    grid: Grid | None = None,
    tries: int = 20,
) -> Scaled:
    """Quantize a layer with the exponent that changes its output least.

    Args:
        weight: W; unchanged.
        inputs: of ``calibrate``.
        grid: bits, groups, symmetry.
        tries: exponents 0, 1 / tries, ..., 1.

    Raises:
        ValueError: not a finite matrix, inputs of another layer, groups that do not
            divide the rows.

    >>> W, loud = torch.randn(8, 16), 1 + 9 * (torch.arange(16) < 2)
    >>> seen = Inputs(torch.zeros(16, 16).double(), torch.zeros(16).double())
    >>> seen.add(loud * torch.randn(100, 16))
    >>> best = awq(W, seen, Grid(3, None))
    >>> plain = quantize_rtn(W, Grid(3, None))
    >>> seen.error(best.weight() - W) <= seen.error(plain.weight() - W)
    True
    """
    require_matrix(weight)
    require_count(tries=tries)
    grid, N = grid or Grid(), weight.shape[1]
    fits, need = inputs.mean.shape == (N,), f"of {N} columns"
    require(fits, "inputs", inputs.mean, need, "take those of this layer")
    best, least = None, float("inf")
    for i in range(tries + 1):
        scales = protection(inputs.mean, i / tries).half()
        scaled = weight * scales.to(weight.dtype)
        made = Scaled(quantize_rtn(scaled, grid), scales, i / tries)
        error = inputs.error(made.weight() - weight)
        if error < least:
            best, least = made, error
    return best


def protection(mean: Float[Tensor, " N"], alpha: float) -> Float[Tensor, " N"]:
    r"""s = a^alpha, brought to :math:`\sqrt{\max s \, \min s} = 1`.

    An input that never occurs has a tiny mean and not 0, or its column would vanish.

    >>> protection(torch.tensor([4.0, 1.0]), 0.5)
    tensor([1.4142, 0.7071])
    """
    s = mean.clamp(min=1e-4 * mean.max().item() + 1e-12) ** alpha
    return s / (s.max() * s.min()).sqrt()
