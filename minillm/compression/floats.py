"""Floats of fewer bits: the quantizer that nobody calls one.

A float spends its bits on a sign, an exponent and a mantissa. bfloat16 is float32 with
the mantissa cut to seven bits; the two formats of eight bits are e4m3 (four of
exponent, three of mantissa, up to 448) and e5m2 (up to 57,344). In sixteen bits weights
need no scale; in eight each row has one, so that its largest weight is the format's.

Source: Micikevicius et al. 2022 (FP8, arXiv:2209.05433), section 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_one_of

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Floats:
    """A matrix of short floats, and the scales of its rows if they have some."""

    values: Float[Tensor, "M N"]
    scales: Float[Tensor, " M"] | None

    def weight(self) -> Float[Tensor, "M N"]:
        """What they stand for, in float32."""
        values = self.values.float()
        return values if self.scales is None else values * self.scales[:, None]


def round_floats(weight: Float[Tensor, "M N"], dtype: torch.dtype) -> Floats:
    """Round each weight to the nearest float of another format.

    Args:
        weight: of any float type.
        dtype: float32, bfloat16, float16, float8_e4m3fn or float8_e5m2.

    Raises:
        ValueError: not a finite matrix, another format, weights that it cannot hold.

    >>> round_floats(torch.tensor([[1.0, 0.1]]), torch.bfloat16).weight()
    tensor([[1.0000, 0.1001]])
    """
    require_one_of((*FORMATS, *EIGHT_BITS), dtype=dtype)
    x, scales, most = weight.detach().float(), None, torch.finfo(dtype).max
    fine = x.ndim == 2 and x.numel() > 0 and bool(x.isfinite().all())
    if fine and dtype in EIGHT_BITS:
        scales = x.abs().amax(1) / most
        scales = torch.where(scales == 0, 1.0, scales)
        x = (x / scales[:, None]).clamp(-most, most)
    fine = fine and bool((x.abs() <= most).all())
    need, remedy = f"a finite matrix, at most {most:g}", "look for NaN, or use bfloat16"
    require(fine, "weight", weight, need, remedy)
    return Floats(x.to(dtype), scales)
