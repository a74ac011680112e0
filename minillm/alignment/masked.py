r"""Means over some of the positions: what padding must never be part of.

Rows have unequal lengths, so half of a batch may be padding. Every mean of alignment is

.. math:: mean(x) = \frac{\sum_i m_i x_i}{\sum_i m_i}, \qquad m_i \in \{0, 1\}

and padding is *replaced*, not multiplied away: 0 times infinity is NaN. The same holds
for gradients, so whoever takes ``exp`` of a masked quantity masks before, not after.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.errors import require_mask


def kept(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """``x`` where the mask is True, else 0, with a gradient of 0.

    Whoever computes further with what may be infinite in padding begins with this.

    >>> kept(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    require_mask(mask, tuple(x.shape))
    return torch.where(mask, x, torch.zeros_like(x))


def masked_sum(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Sum of ``x`` where the mask is True, whatever stands elsewhere.

    >>> masked_sum(torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([1, 1, 0]).bool())
    tensor(3.)
    """
    return kept(x, mask).sum(dim)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Mean of ``x`` where the mask is True; 0 where it is True nowhere.

    Of nothing there is no mean. 0 is what lets a row without an action change nothing,
    neither the value of a loss nor, through NaN, every weight of the model.

    Args:
        x: any shape, (B, T) mostly.
        mask: of the same shape.
        dim: over which dimension; over all of them if not given. ``dim=1`` gives each
            sequence its own mean, and the mean of those is another number.

    Raises:
        ValueError: a mask of numbers or of another shape.

    >>> x = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> masked_mean(x, x < 9)
    tensor(2.)
    """
    total = masked_sum(x, mask, dim)
    return total / mask.sum(dim).clamp(min=1)


def masked_whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> Float[Tensor, "*shape"]:
    r"""Scale to variance 1 and shift to mean 0, both over what the mask keeps.

    .. math:: x \leftarrow \frac{x - \bar x}{\sqrt{s^2 + \epsilon}}, \qquad
              s^2 = \frac{1}{n - 1} \sum_i m_i (x_i - \bar x)^2

    Args:
        x: advantages, as a rule.
        mask: of the same shape.
        shift_mean: False puts the mean back afterwards, for rewards, whose sign says
            something.
        eps: keeps the quotient finite where all values are equal; they give exactly 0.

    Returns:
        0 where the mask is False.

    Raises:
        ValueError: a mask of numbers or of another shape.

    Source: Engstrom et al. 2020, "Implementation Matters in Deep RL", section 3; the
    unbiased variance is that of TRL's ``masked_whiten``.

    >>> masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0]).bool())
    tensor([-0.7071,  0.7071,  0.0000])
    """
    require_mask(mask, tuple(x.shape))
    values = x[mask]
    if len(values) == 0:
        return torch.zeros_like(x)
    # From the first value: of equal ones nothing is left, not even a rounding error,
    # which the division by sqrt(eps) would make ten thousand times larger.
    first = values[0]
    centred = values - first
    mean = centred.mean()
    centred = centred - mean
    variance = centred.square().sum() / max(1, len(values) - 1)
    white = centred * torch.rsqrt(variance + eps)
    white = white if shift_mean else white + first + mean
    return torch.zeros_like(x).masked_scatter(mask, white)
