r"""GRPO: PPO without a critic, and what it means to average over tokens.

Advantages come from the group (``groups``), one for a whole response. What was removed
is the critic; reward and (for the KL) reference are still there. Per token the loss is
PPO's clipped surrogate, plus the price of leaving the reference:

.. math:: \ell_{i,t} = \max(-\rho_{i,t} A_i, \; -clip(\rho_{i,t}) \, A_i)
          + \beta \, k3_{i,t}

Then tokens are averaged, and three ways of doing so are three objectives. With a weight
w for each token of a response of n_i tokens,

    "sequence"   w = 1 / (B n_i)           GRPO: a long wrong answer is cheap per token
    "token"      w = 1 / sum of all n      BNPO, DAPO: long responses weigh more
    "constant"   w = 1 / (B L)             Dr. GRPO: no length in it, L is a constant

Source: Shao et al. 2024 (DeepSeekMath, arXiv:2402.03300), equation 3; Yu et al. 2025
(DAPO, 2503.14476), section 3; Liu et al. 2025 (Dr. GRPO, 2503.20783); Zheng et al. 2025
(GSPO, 2507.18071), equation 7 for the ratio of a sequence.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.alignment.kl import kl_k1, kl_k3
from minillm.alignment.masked import kept, masked_mean, masked_sum
from minillm.alignment.surrogate import LARGEST, clipped_surrogate, masked_log_ratio
from minillm.errors import require, require_one_of, require_positive

AGGREGATIONS = ("sequence", "token", "constant")
LEVELS = ("token", "sequence")


def grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    clip_high: float | None = None,
    beta: float = 0.0,
    ref_logprobs: Float[Tensor, "B T"] | None = None,
    aggregation: str = "sequence",
    level: str = "token",
    length: int | None = None,
    n_tokens: int | None = None,
) -> Float[Tensor, ""]:
    r"""The clipped surrogate over group advantages, plus beta times KL, as a loss.

    .. math:: L = \sum_{i,t} w_{i,t} \left[ \max(-\rho_{i,t} A_i, \; -clip(\rho_{i,t})
              A_i) + \beta \, k3_{i,t} \right], \qquad
              k3 = e^{-d} + d - 1, \quad d = \ln \pi - \ln \pi_{ref}

    In the first update the ratio is 1 and the loss 0 for groups of equal lengths; its
    gradient is not. The gradient of k3 is that of KL(pi_ref || pi), the other way
    round: with beta in the loss the best policy is not pi_ref exp(r / beta) / Z.

    Args:
        logprobs: of the policy that is trained, in nats.
        old_logprobs: of the policy that sampled.
        advantages: one a response, ``group_advantages(...).flatten()``.
        mask: True at actions.
        clip: epsilon, downwards, and upwards if ``clip_high`` is not given.
        clip_high: epsilon upwards; a larger one lets unlikely tokens rise (DAPO).
        beta: price of KL to the reference.
        ref_logprobs: of the reference; needed if beta is not 0.
        aggregation: the weights w, see above.
        level: "sequence" has one ratio for a whole response, the geometric mean of
            those of its tokens (GSPO); clips are then of the order 1e-3.
        length: L of "constant": the most tokens that a response may have.
        n_tokens: for "token" in mini-batches that are *added*: the actions of all of
            them (DAPO); those of this one if not given (BNPO).

    Raises:
        ValueError: shapes that do not belong together, an unknown word, a clip that is
            not positive, a beta below 0 or without a reference, "constant" without its
            length.

    k3 is not weighed by the ratio, neither in the paper nor (by default) in TRL: it
    estimates the KL in the first update of a batch only.

    Source: Shao et al. 2024, equation 3; the others as above.

    >>> zeros, mask = torch.zeros(2, 8), torch.arange(8) < torch.tensor([[2], [8]])
    >>> batch = (zeros, zeros, torch.tensor([1.0, -1.0]), mask)
    >>> [grpo_loss(*batch, aggregation=a, length=10) for a in AGGREGATIONS]
    [tensor(0.), tensor(0.6000), tensor(0.3000)]
    """
    B = len(logprobs)
    need, remedy = f"of shape ({B},)", "give one for each response"
    require(tuple(advantages.shape) == (B,), "advantages", advantages, need, remedy)
    require_one_of(LEVELS, level=level)
    require(beta >= 0, "beta", beta, "at least 0", "0 leaves the KL out")
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask)
    if level == "sequence":
        mean = masked_mean(log_ratio, mask, dim=1)[:, None]
        log_ratio = mean.expand_as(mask)
    high = clip if clip_high is None else clip_high
    losses = clipped_surrogate(
        log_ratio.exp(), advantages.detach()[:, None], clip, high
    )
    if beta != 0.0:
        known, remedy = ref_logprobs is not None, "score the responses with it"
        need = f"the reference's, as beta = {beta}"
        require(known, "ref_logprobs", ref_logprobs, need, remedy)
        d = kl_k1(kept(logprobs, mask), kept(ref_logprobs.detach(), mask))
        d = d.clamp(min=-LARGEST)  # e^-d overflows; a large d must go on pulling
        losses = losses + beta * kl_k3(d, torch.zeros_like(d))
    return aggregate(losses, mask, aggregation, length, n_tokens)


def aggregate(
    losses: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    aggregation: str,
    length: int | None = None,
    n_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Weigh the tokens' losses and add them up; see ``grpo_loss``.

    A row without actions adds nothing, but still counts as one of B.

    >>> losses = torch.tensor([[4.0, 0.0], [1.0, 1.0]])
    >>> mask = torch.tensor([[True, False], [True, True]])
    >>> aggregate(losses, mask, "sequence"), aggregate(losses, mask, "token")
    (tensor(2.5000), tensor(2.))
    """
    require_one_of(AGGREGATIONS, aggregation=aggregation)
    if aggregation == "sequence":
        return masked_mean(losses, mask, dim=1).mean()
    total = masked_sum(losses, mask)
    if aggregation == "token":
        return total / max(1, int(mask.sum()) if n_tokens is None else n_tokens)
    need, remedy = "given for 'constant'", "give the most tokens of a response"
    require(length is not None, "length", length, need, remedy)
    require_positive(length=length)
    return total / (len(losses) * length)
