r"""How far has the policy moved? The KL divergence, exact and estimated.

.. math:: KL(\pi \| \pi_{ref}) = E_{x \sim \pi} [\log \pi(x) - \log \pi_{ref}(x)]

The exact sum runs over the vocabulary, at every position. Usually only the log-probs of
sampled tokens are at hand; with :math:`d = \log \pi(x) - \log \pi_{ref}(x)`, a token
drawn from the policy estimates the sum by one of

.. math:: k_1 = d, \qquad k_2 = \tfrac{1}{2} d^2, \qquad k_3 = e^{-d} + d - 1

As **numbers**, to look at or to take off a reward: k1 is right in the mean, and of one
token often negative, which is no mistake; k2 is biased, little where d is small; k3 is
right in the mean, never negative, and has a heavy tail where the reference finds likely
what the policy hardly ever says.

As **losses**, with the tokens drawn beforehand, a gradient flows through d alone and
not through the draw. Then they are three different things:

    estimator   its expected gradient, tokens drawn from the policy itself
    k1          0: the mean of grad log pi is zero; it only adds noise
    k2          grad KL(pi || ref), as if one had differentiated the exact sum
    k3          grad KL(ref || pi) for ref held fixed: another divergence

so a policy with k3 in its loss (GRPO) is drawn to the reference by the forward KL, and
one with k1 taken off its reward (PPO, RLOO) by the reverse one. Near the reference they
agree. Tokens that an older policy drew need the ratio as weight for all of this.

k3 in the mean is right only if the reference puts nothing where the policy cannot go:
after top-k or top-p it misses that part, as k1 does not.

Source: Schulman, "Approximating KL divergence" (blog, 2020), for k1, k2, k3; the
gradients follow in one line each from E[grad log pi] = 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require


def kl_k1(
    logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    r"""The log-ratio: unbiased, of either sign; for rewards, never as a loss.

    .. math:: k_1 = \log \pi - \log \pi_{ref}

    Args:
        logprobs: of sampled tokens (or sequences), by the policy that drew them.
        ref_logprobs: of the same tokens, by the reference.

    Raises:
        ValueError: shapes that differ; they would broadcast to something else.

    >>> kl_k1(torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log())
    tensor([ 0.6931, -0.6931])
    """
    _require_same(logprobs, ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(
    logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    r"""Half the squared log-ratio: biased, but its gradient is that of the reverse KL.

    .. math:: k_2 = \tfrac{1}{2} (\log \pi - \log \pi_{ref})^2

    Arguments and errors as for ``kl_k1``.

    >>> kl_k2(torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log())
    tensor([0.2402, 0.2402])
    """
    return kl_k1(logprobs, ref_logprobs).square() / 2


def kl_k3(
    logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    r"""The log-ratio with a control variate of mean zero: unbiased and never negative.

    .. math:: k_3 = \frac{\pi_{ref}}{\pi} - 1 - \log \frac{\pi_{ref}}{\pi}

    Arguments and errors as for ``kl_k1``.

    Source: Shao et al. 2024 (DeepSeekMath, GRPO), equation 4, uses it in the loss.

    >>> kl_k3(torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log())
    tensor([0.1931, 0.3069])
    """
    d = kl_k1(logprobs, ref_logprobs)
    # expm1 keeps the digits that exp(-d) - 1 loses where the two models are close. Its
    # rounding may still leave -1e-9 for a k3 of zero.
    return torch.expm1(-d) + d


def kl_exact(
    logits: Float[Tensor, "*N V"], ref_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    r"""The divergence itself, of each distribution over the vocabulary.

    .. math:: KL = \sum_v \pi(v) [\log \pi(v) - \log \pi_{ref}(v)]

    A token that the policy cannot say adds nothing; one that the reference cannot say
    and the policy can makes it infinite.

    Args:
        logits: of the policy; log-probs are logits, too.
        ref_logits: of the reference.

    Raises:
        ValueError: shapes that differ.

    Source: Kullback and Leibler 1951.

    >>> uniform, sure = torch.zeros(2), torch.tensor([0.0, -torch.inf])
    >>> kl_exact(sure, uniform), kl_exact(uniform, sure)   # ln 2
    (tensor(0.6931), tensor(inf))
    """
    _require_same(logits, ref_logits)
    logprobs, ref_logprobs = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    impossible = logprobs == -torch.inf
    # 0 times inf would be NaN, and so would its gradient.
    d = kl_k1(logprobs, ref_logprobs).masked_fill(impossible, 0.0)
    return (logprobs.exp() * d).sum(-1)


def _require_same(ours: Tensor, theirs: Tensor) -> None:
    shape, remedy = tuple(ours.shape), "score the same tokens with both models"
    need = f"of shape {shape}, as the policy's"
    require(ours.shape == theirs.shape, "the reference's", theirs, need, remedy)
