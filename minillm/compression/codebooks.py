r"""Codebooks: the few numbers that a quantized weight may be.

Four bits name one of sixteen numbers. Which sixteen? If all weights came from a normal
distribution, each code would be used equally often if the levels were its quantiles.
NF4 takes them from there, with two additions: 0 is a level, or padding and pruned
weights would drift; and the ends are -1 and 1, because each block is divided by its
largest magnitude, so that one of them always occurs.

.. math:: q_i = \tfrac{1}{2} \left( \Phi^{-1}(\tfrac{i}{2^k + 1})
          + \Phi^{-1}(\tfrac{i+1}{2^k + 1}) \right) \quad \text{in the paper's words};

what is really done: eight quantiles above 0 and seven below, evenly spaced in
probability up to 1 - (1/30 + 1/32) / 2, divided by the largest.

It is often called optimal. It would be for codes of equal frequency and weights that
are normal *after* the division by the block's maximum, which they are not.

Source: Dettmers et al. 2023 (QLoRA, arXiv:2305.14314), section 3 and appendix E;
Dettmers et al. 2021 (8-bit optimizers, 2110.02861), section 2.1, for the dynamic map;
Yoshida 2023 (2306.06965) for what NF4 is not.
"""

from statistics import NormalDist

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def nf4_levels() -> Float[Tensor, "16"]:
    """The levels of NF4, made from quantiles of the normal distribution.

    >>> nf4_levels()[[0, 7, 8, 15]]
    tensor([-1.0000,  0.0000,  0.0796,  1.0000])
    """
    most = 1 - (1 / 30 + 1 / 32) / 2  # an infinite quantile would be no level
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in torch.linspace(most, 0.5, 9).tolist()[:-1]]
    below = [-quantile(p) for p in torch.linspace(most, 0.5, 8).tolist()[:-1]]
    levels = torch.tensor(sorted([*below, 0.0, *above]))
    return levels / levels.max()


NF4_LEVELS = nf4_levels()

# One bit for the sign, two for the exponent, one for the mantissa; the second and third
# are subnormal. In the order of the codes, as bitsandbytes stores them.
FP4_LEVELS = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
FP4_LEVELS = torch.cat([FP4_LEVELS, -FP4_LEVELS])


def dynamic_map() -> Float[Tensor, "256"]:
    """An 8-bit float whose exponent takes as many bits as it needs, with a sign.

    Seven decades; the largest has 64 levels, the smallest one. For numbers whose sizes
    differ much, such as the scales of blocks.

    >>> dynamic_map()[[0, 127, 255]]
    tensor([-0.9930,  0.0000,  1.0000])
    """
    levels = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1, 2**i + 1)
        middles = (ends[:-1] + ends[1:]) / 2 * 10 ** (i - 6)
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels))


def nearest(x: Float[Tensor, "*N"], levels: Float[Tensor, " K"]) -> UInt8[Tensor, "*N"]:
    """The code of the level next to each number; at most 256 levels, in any order.

    >>> nearest(torch.tensor([0.3, -2.0]), torch.tensor([0.0, 1.0, -1.0]))
    tensor([0, 2], dtype=torch.uint8)
    """
    ordered, codes = levels.sort()
    middles = (ordered[:-1] + ordered[1:]) / 2
    places = torch.bucketize(x, middles, out_int32=True)
    codes = codes.to(torch.uint8)
    return places.to(torch.uint8) if levels.equal(ordered) else codes[places]
