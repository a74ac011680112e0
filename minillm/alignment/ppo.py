r"""PPO for language models: two losses, a thermostat, and what to watch.

The policy minimises the clipped surrogate over advantages (``advantages.gae``), the
critic the squared distance to the returns, and the KL to the reference is held near a
target by adapting its price:

.. math:: L = E[\max(-\rho A, -clip(\rho) A)], \qquad L_V = E[(V - R)^2], \qquad
          \beta \leftarrow \beta \, (1 + K \, clip(KL / target - 1, \pm 0.2))

Four models take part: the policy, the reference (frozen, for the KL only), the reward
model or verifier, and the critic. "Old" is no fifth one: it is the log-probabilities
that were noted when the batch was sampled.

Source: Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022 (InstructGPT),
section 3.5 and appendix C.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.alignment.masked import kept, masked_mean
from minillm.alignment.surrogate import clipped_surrogate, masked_log_ratio
from minillm.errors import require, require_mask, require_positive


def ppo_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    r"""The clipped surrogate, as a loss, averaged over the actions.

    .. math:: L = \frac{1}{N} \sum_t \max(-\rho_t A_t, \; -clip(\rho_t, 1 \pm \epsilon)
              \, A_t), \qquad \rho_t = e^{\ln \pi(a_t) - \ln \pi_{old}(a_t)}

    In the first update the ratio is 1 and the loss minus the mean advantage, which is
    near 0 and says nothing; its gradient is that of REINFORCE with a baseline.

    Args:
        logprobs: of the policy that is trained, in nats.
        old_logprobs: of the policy that sampled; constants, as advantages are.
        advantages: from ``gae``, whitened or not.
        mask: True at actions.
        clip: epsilon.

    Raises:
        ValueError: shapes that do not belong together, a clip that is not positive.

    Source: Schulman et al. 2017, equation 7.

    >>> old, ones = torch.zeros(1, 2), torch.ones(1, 2)
    >>> logprobs = torch.tensor([1.5, 0.5]).log()[None]
    >>> ppo_policy_loss(logprobs, old, ones, ones.bool(), clip=0.2)   # -(1.2 + 0.5) / 2
    tensor(-0.8500)
    """
    ratio = masked_log_ratio(logprobs, old_logprobs, mask).exp()
    _require_like(logprobs, advantages=advantages)
    losses = clipped_surrogate(ratio, advantages.detach(), clip, clip)
    return masked_mean(losses, mask)


def ppo_value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    r"""Squared distance to the returns, without pay for moves beyond the clip.

    .. math:: L_V = \frac{1}{N} \sum_t \max((V_t - R_t)^2, \; (clip(V_t, V_{old,t} \pm
              \epsilon) - R_t)^2)

    The larger of two errors: a value that has moved too far *towards* its return gets
    no gradient, one that has moved away from it gets all of it.

    Args:
        values: of the critic that is trained.
        old_values: what it said when the batch was sampled.
        returns: advantages before whitening plus ``old_values``, from ``gae``.
        mask: True at actions.
        clip: in units of the reward; infinity gives the plain squared error.

    Raises:
        ValueError: shapes that do not belong together, a clip that is not positive.

    Source: Schulman et al. 2017, equation 9, which does not clip; the clip is that of
    OpenAI's baselines. Differs from TRL: no factor 1/2 (it belongs to the coefficient).

    >>> v, old, r = (torch.tensor([[x]]) for x in (1.0, 0.0, 0.5))
    >>> ppo_value_loss(v, old, r, r > 0, clip=0.2)   # and not (0.2 - 0.5)^2
    tensor(0.2500)
    """
    _require_like(values, old_values=old_values, returns=returns)
    require_positive(clip=clip)
    target = kept(returns.detach(), mask)
    V, V_old = kept(values, mask), kept(old_values.detach(), mask)
    clipped = V_old + (V - V_old).clamp(-clip, clip)
    errors = torch.maximum((V - target).square(), (clipped - target).square())
    return masked_mean(errors, mask)


def _require_like(like: Tensor, **tensors: Tensor) -> None:
    """Broadcasting (B, T) against (B,) would pass unseen where B = T."""
    shape = tuple(like.shape)
    for name, x in tensors.items():
        fits, remedy = tuple(x.shape) == shape, "give one for each token"
        require(fits, name, x, f"of shape {shape}", remedy)


def adapt_beta(beta: float, kl: float, target: float, rate: float = 0.1) -> float:
    r"""Raise the price of KL when there is too much of it, lower it when too little.

    .. math:: \beta \leftarrow \beta \, (1 + K e), \qquad
              e = clip(KL / target - 1, -0.2, 0.2)

    Args:
        beta: the price of a nat.
        kl: measured in the last batch: nats per response, or per token, as ``target``.
        target: what it should be.
        rate: K; one step changes beta by at most a fifth of it.

    Raises:
        ValueError: a target or rate that is not positive, a KL that is no number.

    Source: Ziegler et al. 2019, section 2.2.

    >>> adapt_beta(0.5, kl=9.0, target=6.0), adapt_beta(0.5, kl=6.0, target=6.0)
    (0.51, 0.5)
    """
    require_positive(target=target, rate=rate)
    require(kl == kl, "kl", kl, "a number", "look for NaN among the log-probabilities")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + rate * error)


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> float:
    r"""How much of the returns the critic knows: 1 all, 0 their mean, below 0 less.

    .. math:: 1 - Var(R - V) / Var(R)

    Where all returns are equal there is nothing to explain, and it is 0.

    >>> returns = torch.tensor([[0.0, 1.0, 2.0]])
    >>> explained_variance(returns + 5, returns, returns > -1)
    1.0
    """
    require_mask(mask, tuple(values.shape))
    errors, target = (returns - values)[mask], returns[mask]
    if len(target) == 0 or bool((target == target[0]).all()):
        return 0.0
    return 1 - (errors.var(correction=0) / target.var(correction=0)).item()
