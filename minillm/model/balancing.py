r"""Keeping all experts at work.

An expert that is chosen more learns more and is chosen more; the others are never asked
again. Three remedies, and a loss that only keeps the router's numbers small:

- a loss that taxes the router's probability P for an expert by the load f that it has:

.. math:: L = E \sum_e f_e P_e, \qquad f_e = \frac{assignments_e}{assignments}, \quad
          P_e = \frac{1}{N} \sum_n p_{ne}

- noise on the logits, so that close seconds are tried;
- a bias for choosing, nudged up where the load is too small. It enters no gate and no
  loss, so no gradient serves two masters.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_positive
from minillm.model.layers import at_least_float32


def balance_loss(
    scores: Float[Tensor, "N E"], load: Float[Tensor, " E"]
) -> Float[Tensor, ""]:
    r"""The load balancing loss: 1 if P is uniform or f is, up to E if all is collapsed.

    The load has no gradient; P has, and it is pushed down in proportion to the load:

    .. math:: \frac{\partial L}{\partial z_{ne}} = \frac{E}{N} p_{ne}
              \Big(f_e - \sum_j f_j p_{nj}\Big)

    It is often said to be least, 1, for a uniform load. That holds where f = P (then it
    is E times a sum of squares). Where they part it may fall below 1; and with P near
    uniform it stays at 1 however collapsed the load is.

    Args:
        scores: of all experts; made to sum to 1, which a softmax does already.
        load: the part of the assignments that each expert has, before any is dropped.

    Raises:
        ValueError: no tokens.

    Source: Fedus et al. 2021 (Switch), equations 4 to 6; for sigmoid scores DeepSeek-V3
    (2024), equations 17 to 20, but over the batch and not over each sequence.
    Differs from transformers' Mixtral: its f sums to k, so its loss is k times ours.

    >>> collapsed = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> balance_loss(collapsed, torch.tensor([1.0, 0.0]))
    tensor(2.)
    """
    N, E = scores.shape
    require(N > 0, "scores", scores, "of at least one token", "give some")
    P = (scores / scores.sum(-1, keepdim=True).clamp(min=1e-20)).mean(0)
    return E * (load.detach() * P).sum()


def z_loss(logits: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    r"""Keep the router's logits small, where half precision can tell them apart.

    .. math:: L = \frac{1}{N} \sum_n \Big(\ln \sum_e e^{z_{ne}}\Big)^2

    A softmax does not change if all logits rise together; this does. The mean square of
    the logits is something else: it asks for an indifferent router.

    Raises:
        ValueError: no tokens.

    Source: Zoph et al. 2022 (ST-MoE), equation 5.

    >>> z_loss(torch.full((3, 8), 0.125).log())     # probabilities already
    tensor(0.)
    """
    require(len(logits) > 0, "logits", logits, "of at least one token", "give some")
    return at_least_float32(logits).logsumexp(-1).square().mean()


def noisy_logits(
    logits: Float[Tensor, "N E"],
    spread: Float[Tensor, "N E"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N E"]:
    r"""Logits with noise whose size is learned: noisy top-k gating.

    .. math:: \tilde z = z + \epsilon \cdot softplus(spread), \epsilon \sim N(0, 1)

    Source: Shazeer et al. 2017, equation 4.

    >>> logits = torch.zeros(2, 4)
    >>> noisy_logits(logits, torch.full((2, 4), -200.0)).equal(logits)   # no spread
    True
    """
    shape, device = logits.shape, logits.device
    noise = torch.randn(shape, generator=generator, device=device, dtype=logits.dtype)
    return logits + noise * F.softplus(spread)


@torch.no_grad()
def nudge(bias: Float[Tensor, " E"], load: Float[Tensor, " E"], rate: float) -> None:
    r"""Raise, in place, the bias of experts below the mean load; lower that of others.

    .. math:: b_e \leftarrow b_e + \gamma \, sign(\bar f - f_e)

    A step of fixed size from the load of the last batch; no moving average.

    Args:
        bias: added to scores in (0, 1) where experts are chosen, and nowhere else.
        load: of each expert, in any unit.
        rate: gamma; DeepSeek-V3 used 0.001 for most of its training.

    Raises:
        ValueError: a rate that is not positive.

    Source: Wang et al. 2024 (auxiliary-loss-free), algorithm 1; DeepSeek-V3 (2024),
    section 2.1.2.

    >>> bias = torch.zeros(3)
    >>> nudge(bias, torch.tensor([6.0, 2.0, 1.0]), rate=0.5)
    >>> bias
    tensor([-0.5000,  0.5000,  0.5000])
    """
    require_positive(rate=rate)
    bias.add_(rate * (load.mean() - load).sign().to(bias.dtype))


class ChargedLoss(torch.autograd.Function):
    """Pass x on as it is; backward, act as if ``loss`` had been added to the total.

    So a layer's own losses reach its router in any training loop, and none of them need
    know. Each backward pass counts once: with gradients accumulated over n batches,
    divide the losses' weights by n.

    Source: Megatron-LM's MoEAuxLossAutoScaler.
    """

    @staticmethod
    def forward(ctx, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, ctx.one
