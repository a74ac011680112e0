r"""Kahneman-Tversky optimisation: thumbs up and thumbs down, and no pairs.

Most feedback is a button under one response, not a comparison of two. KTO borrows the
shape of human value from prospect theory: gains and losses count from a reference
point, and both saturate. The point is how far the policy has moved from the reference
in general, its KL; a response counts by how much further it has moved itself:

.. math::
    r &= \log \pi(y|x) - \log \pi_{ref}(y|x), \qquad
    z_0 = KL(\pi(y'|x) \,\|\, \pi_{ref}(y'|x)) \\
    L &= \lambda_D \, (1 - \sigma(\beta (r - z_0))) \quad \text{if } y
         \text{ is desirable} \\
    L &= \lambda_U \, (1 - \sigma(\beta (z_0 - r))) \quad \text{if it is not}

To raise all log-probs of responses together gains nothing: the reference point rises
with them. Where the policy is sure already, on either side, the gradient vanishes: what
looks mislabelled is ignored, which helps with noise and hurts with hard examples.

The KL is estimated from responses that are there anyway, each under the prompt of
another row: mismatched pairs. That is no unbiased KL (those texts are not drawn from
the policy), but it needs no sampling. Its mean may come out negative, which no KL is,
so it is held at zero; it is a point of reference, and no gradient passes through it.

Source: Ethayarajh et al., arXiv:2402.01306, equations 7 and 8.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.alignment.dpo import require_rows
from minillm.errors import require, require_mask, require_positive


def kto_kl(
    policy_mismatched: Float[Tensor, " B"], ref_mismatched: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """The reference point of a batch: a mean log-ratio, at least 0, without gradient.

    Args:
        policy_mismatched: summed log-probs of responses under prompts of other rows.
        ref_mismatched: the same by the reference.

    Raises:
        ValueError: log-probs that are not finite, or not both of one shape (B,).

    >>> kto_kl(torch.tensor([-1.0, -5.0]), torch.tensor([-2.0, -7.0]))
    tensor(1.5000)
    >>> kto_kl(torch.tensor([-9.0]), torch.tensor([-2.0]))
    tensor(0.)
    """
    require_rows(policy_mismatched=policy_mismatched, ref_mismatched=ref_mismatched)
    return (policy_mismatched - ref_mismatched).detach().mean().clamp(min=0)


def kto_loss(
    policy: Float[Tensor, " B"],
    ref: Float[Tensor, " B"],
    desirable: Bool[Tensor, " B"],
    kl: Float[Tensor, ""] | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    r"""The loss of each response; train on the mean over all of them together.

    Where thumbs down are few, raise their weight, so that
    :math:`\lambda_D n_D / (\lambda_U n_U)` comes near 1.

    Args:
        policy: log-probs of the responses in nats, summed over their tokens.
        ref: the same by the frozen reference; no gradient.
        desirable: True for thumbs up.
        kl: the reference point, as ``kto_kl`` makes it.
        beta: how soon value saturates; large keeps the policy near the reference.
        desirable_weight, undesirable_weight: the lambdas.

    Raises:
        ValueError: beta or a weight that is not positive, a negative KL, log-probs that
            are not finite or not of one shape (B,), labels that are no bools.

    >>> zero, labels = torch.zeros(2), torch.tensor([True, False])
    >>> kto_loss(zero, zero, labels, kl=0.0, beta=0.1)   # at the start: one half each
    tensor([0.5000, 0.5000])
    """
    weights = {"desirable_weight": desirable_weight}
    weights["undesirable_weight"] = undesirable_weight
    require_positive(beta=beta, **weights)
    require_rows(policy=policy, ref=ref)
    require_mask(desirable, tuple(policy.shape))
    kl = torch.as_tensor(kl, dtype=policy.dtype).detach()
    remedy = "estimate it by kto_kl, which holds it at zero"
    require(kl.dim() == 0 and bool(kl >= 0), "kl", kl, "one number >= 0", remedy)
    gain = beta * (policy - ref.detach() - kl)
    weight = torch.full_like(gain, undesirable_weight)
    weight = weight.masked_fill(desirable, desirable_weight)
    # 1 - sigmoid(x) would round to 0 at x = 17 in float32; sigmoid(-x) does not.
    return weight * torch.sigmoid(torch.where(desirable, -gain, gain))
