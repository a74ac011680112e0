r"""How far may one batch of samples carry the policy? The clipped surrogate.

Samples are expensive, so several updates are made from one batch. After the first the
policy is no longer the one that sampled, and each token is weighed by the ratio

.. math:: \rho = \frac{\pi(a)}{\pi_{old}(a)} = e^{\ln \pi(a) - \ln \pi_{old}(a)}

Far from 1 it says little. So the objective stops paying once the ratio has moved by
epsilon in the direction that the advantage asks for,

.. math:: \min(\rho A, \; clip(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) \, A)

and only in that direction: a ratio that moved the wrong way keeps its full gradient,
which is how it gets back. PPO and GRPO differ in A, not in this.

``old`` is the policy that sampled, frozen for all updates of a batch. The reference is
another model, in another place: the penalty. Taken for ``old``, it would pin the policy
to itself.

Source: Schulman et al. 2017 (PPO), equation 7; DAPO (Yu et al. 2025), equation 10 for
two bounds.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.alignment.kl import kl_k3
from minillm.alignment.masked import kept, masked_mean
from minillm.errors import require

LARGEST = 20.0  # of a log-ratio: e^20 is finite, and no ratio of that size is of use


def masked_log_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """ln pi - ln pi_old at actions, 0 elsewhere, at most ``LARGEST`` in size.

    Masked and bounded *before* anybody takes ``exp``: the gradient of a clipped branch
    is 0 times the ratio, and 0 times infinity is NaN.

    >>> x = torch.tensor([[-1.0, -torch.inf, 99.0]])
    >>> masked_log_ratio(x, torch.full((1, 3), -2.0), x == -1)
    tensor([[1., 0., 0.]])
    """
    same = tuple(old_logprobs.shape) == tuple(logprobs.shape)
    need, remedy = f"of shape {tuple(logprobs.shape)}", "score the same tokens"
    require(same, "old_logprobs", old_logprobs, need, remedy)
    log_ratio = kept(logprobs, mask) - kept(old_logprobs.detach(), mask)
    return log_ratio.clamp(-LARGEST, LARGEST)


def clipped_surrogate(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    low: float,
    high: float,
) -> Float[Tensor, "B T"]:
    r"""The loss of each token: minus the smaller of two gains.

    .. math:: \max(-\rho A, \; -clip(\rho, 1 - low, 1 + high) \, A)

    >>> ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    >>> clipped_surrogate(ratio, torch.tensor([[1.0, -1.0, 1.0, -1.0]]), 0.2, 0.2)
    tensor([[-1.2000,  1.5000, -0.5000,  0.8000]])
    """
    for name, bound in (("clip", low), ("clip_high", high)):
        require(
            bound > 0, name, bound, "positive", "0.2 is usual, infinity never clips"
        )
    clipped = ratio.clamp(1 - low, 1 + high)
    return torch.maximum(-ratio * advantages, -clipped * advantages)


@torch.no_grad()
def clip_fraction(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    low: float,
    high: float,
) -> Float[Tensor, ""]:
    """The part of the actions whose gradient the clipping took.

    Not every ratio out of bounds is one of them: with a positive advantage only one
    above 1 + high is, with a negative one only one below 1 - low.

    >>> ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    >>> advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> clip_fraction(ratio, advantages, ratio > 0, 0.2, 0.2)
    tensor(0.5000)
    """
    above = (ratio > 1 + high) & (advantages > 0)
    below = (ratio < 1 - low) & (advantages < 0)
    return masked_mean((above | below).to(ratio.dtype), mask)


@torch.no_grad()
def approximate_kl(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    r"""KL(old || new) in nats per action: how far this batch has carried the policy.

    .. math:: E_{old}[\rho - 1 - \ln \rho], \qquad never negative

    Source: Schulman 2020, "Approximating KL divergence" (k3; the samples are the old
    policy's).

    >>> approximate_kl(torch.zeros(1, 2), torch.ones(1, 2).bool())
    tensor(0.)
    """
    # k3 with the old policy in the first place: it drew the tokens.
    return masked_mean(kl_k3(torch.zeros_like(log_ratio), log_ratio), mask)
