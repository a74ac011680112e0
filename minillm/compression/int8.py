r"""Eight bits: integers that multiply, and a few features that must not be among them.

.. math:: X W^T \approx \left( \mathrm{int8}(X) \, \mathrm{int8}(W)^T \right)
          \odot s_X s_W^T, \qquad s = \max |row| / 127

With one scale for each row of X and of W, the product of integers is exact and only the
rounding of the factors is lost. Some features of a large model are tens of times as
large as all others, in the same few dimensions of every token; one of them sets the
scale of its row, and everything else rounds to 0. LLM.int8 takes these columns out and
multiplies them as they are:

.. math:: X W^T \approx \underbrace{X_{O} W_{O}^T}_{float} +
          \underbrace{\mathrm{int8}(X_{\bar O}) \mathrm{int8}(W_{\bar O})^T}_{scaled},
          \qquad O = \{ j : \exists t \; |X_{tj}| \ge 6 \}

The threshold is a magnitude, no number of standard deviations.

Source: Dettmers et al. 2022 (LLM.int8, arXiv:2208.07339), sections 2 and 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from minillm.errors import require, require_positive


@dataclass(frozen=True)
class Int8:
    """Integers of -127..127 and the size of a step, for each row."""

    codes: Int8[Tensor, "N K"]
    steps: Float[Tensor, " N"]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.codes.nbytes + self.steps.nbytes

    def weight(self) -> Float[Tensor, "N K"]:
        """The numbers that the codes stand for."""
        return dequantize_int8(self)


def quantize_int8(x: Float[Tensor, "N K"]) -> Int8:
    """Round each row to multiples of its largest magnitude over 127.

    Raises:
        ValueError: not a matrix, or one that is not finite.

    >>> quantize_int8(torch.tensor([[1.27, -0.5, 0.0]])).codes
    tensor([[127, -50,   0]], dtype=torch.int8)
    """
    finite = x.ndim == 2 and x.numel() > 0 and bool(x.isfinite().all())
    remedy = "find the NaN or infinite entries"
    require(finite, "x", x, "a finite matrix", remedy)
    steps = x.abs().amax(1) / 127
    codes = (x / torch.where(steps == 0, 1.0, steps)[:, None]).round()
    return Int8(codes.to(torch.int8), steps)


def dequantize_int8(q: Int8) -> Float[Tensor, "N K"]:
    """The numbers that the codes stand for.

    >>> dequantize_int8(quantize_int8(torch.tensor([[1.27, -0.5]])))
    tensor([[ 1.2700, -0.5000]])
    """
    return q.codes * q.steps[:, None]


def int8_product(x: Int8, weight: Int8) -> Float[Tensor, "N M"]:
    """x times weight transposed, in integers; exact up to the codes.

    >>> one = quantize_int8(torch.tensor([[1.0, -1.0]]))
    >>> int8_product(one, one)
    tensor([[2.]])
    """
    # int32 holds the sum of 127^2 over 130,000 columns.
    product = x.codes.int() @ weight.codes.int().T
    return product * x.steps[:, None] * weight.steps


def llm_int8_linear(
    x: Float[Tensor, "N K"], weight: Int8, threshold: float = 6.0
) -> Float[Tensor, "N M"]:
    """A linear layer with weights in int8 and outlier features in floats.

    Args:
        x: inputs, one row a token.
        weight: rows of outputs.
        threshold: magnitude from which on a feature is an outlier.

    Raises:
        ValueError: as ``quantize_int8``; a threshold that is not positive.

    >>> weight = quantize_int8(torch.eye(2))
    >>> llm_int8_linear(torch.tensor([[60.0, 0.1]]), weight)   # 0.1 is not rounded to 0
    tensor([[60.0000,  0.1000]])
    """
    require_positive(threshold=threshold)
    outlier = (x.abs() >= threshold).any(0)
    plain = int8_product(quantize_int8(x.masked_fill(outlier, 0.0)), weight)
    columns = weight.codes[:, outlier] * weight.steps[:, None]
    return plain + x[:, outlier] @ columns.T.to(x.dtype)
