r"""What the bits of a number mean: float32, float16, bfloat16 and two of eight bits.

One sign bit s, an exponent field e of X bits, a mantissa field m of M bits:

.. math:: (-1)^s \, 2^{e - bias} (1 + m / 2^M), \qquad
          (-1)^s \, 2^{1 - bias} \, m / 2^M \ \text{ if } e = 0, \qquad
          bias = 2^{X - 1} - 1

Exponent bits buy range, mantissa bits buy precision. The gap between 1 and the next
number is the machine epsilon 2^-M, and 1 + x is rounded to 1 for x up to half of it (a
tie goes to the even mantissa, which is that of 1): 0.004 in bfloat16. A weight of 1 in
bfloat16 therefore ignores all smaller updates, which is why training keeps its weights
in float32. Numbers below the smallest normal one keep their place, not their precision:
they are subnormal, have ever fewer bits, and are the gap that loss scaling lives on.

Sources: IEEE 754-2019, section 3.4; Micikevicius et al. 2022 (arXiv 2209.05433) for
e4m3, which gives up infinity and all but one not-a-number for one exponent more.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require


@dataclass(frozen=True)
class NumberFormat:
    """A binary floating-point format; see the head of this module.

    Args:
        exponent: X, bits of the exponent.
        mantissa: M, bits of the mantissa.
        infinite: whether the largest exponent is kept for infinities and
            not-a-numbers, as IEEE 754 has it.
    """

    exponent: int
    mantissa: int
    infinite: bool = True

    @property
    def bits(self) -> int:
        """All of them, with the sign."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is taken from the exponent field; 1.0 has the field ``bias``."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def epsilon(self) -> float:
        """The gap between 1 and the next number; half of it, added to 1, is lost."""
        return 2.0**-self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite number."""
        if self.infinite:
            return 2.0**self.bias * (2 - self.epsilon)
        return 2.0 ** (self.bias + 1) * (2 - 2 * self.epsilon)  # the last one is nan

    @property
    def smallest_normal(self) -> float:
        """The smallest number that has all its precision."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest number above 0."""
        return self.smallest_normal * self.epsilon


FORMATS = {
    "float32": NumberFormat(8, 23),
    "float16": NumberFormat(5, 10),
    "bfloat16": NumberFormat(8, 7),
    "float8_e4m3fn": NumberFormat(4, 3, infinite=False),
    "float8_e5m2": NumberFormat(5, 2),
}


def decode(bits: Int[Tensor, "..."], kind: NumberFormat) -> Float[Tensor, "..."]:
    """The numbers, in float64, that patterns of bits stand for.

    Args:
        bits: whole numbers from 0 up to 2^bits - 1.
        kind: the format.

    Raises:
        ValueError: a pattern with more bits than the format has.

    >>> decode(torch.tensor([0x3F80, 0x3F81, 0x7F80]), FORMATS["bfloat16"])
    tensor([1.0000, 1.0078,    inf], dtype=torch.float64)
    """
    bits = bits.long()
    fits = bool(((bits >= 0) & (bits < 2**kind.bits)).all())
    require(fits, "bits", bits, f"in 0..2^{kind.bits} - 1", "view it as unsigned")
    m, rest = bits % 2**kind.mantissa, bits >> kind.mantissa
    e, s = rest % 2**kind.exponent, rest >> kind.exponent
    part = m.double() * kind.epsilon + (e > 0)
    value = torch.ldexp(part, e.clamp(min=1) - kind.bias)
    top = e == 2**kind.exponent - 1
    if kind.infinite:
        value[top & (m == 0)] = math.inf
        value[top & (m > 0)] = math.nan
    else:
        value[top & (m == 2**kind.mantissa - 1)] = math.nan
    return torch.where(s == 1, -value, value)
