r"""Direct preference optimisation: RLHF without a reward model and without sampling.

RLHF looks for the policy that earns reward and stays near the reference. That problem
has a closed solution, computed exactly in ``world/closed.py``:

.. math:: \max_\pi E_\pi[r] - \beta KL(\pi \| \pi_{ref}) \quad\Rightarrow\quad
          \pi^*(y|x) = \frac{1}{Z(x)} \pi_{ref}(y|x) \, e^{r(x,y) / \beta}

Take the logarithm and read it backwards: a policy is the optimum of *some* reward,

.. math:: r(x, y) = \beta \log \frac{\pi^*(y|x)}{\pi_{ref}(y|x)} + \beta \log Z(x)

Z sums over all texts and nobody can compute it. But annotators compare, and comparing
only sees differences of rewards; Z depends on the prompt alone, so it cancels:

.. math:: P(y_w \succ y_l) = \sigma(r_w - r_l) = \sigma(\beta (h_w - h_l)), \qquad
          h = \log \pi(y|x) - \log \pi_{ref}(y|x)

The loss is the surprise of the verdicts under that formula, a classification in which
the policy itself is the reward model:

.. math:: L = -\log \sigma(\beta (h_w - h_l)), \qquad
          \frac{\partial L}{\partial \log \pi_w} = -\beta \, \sigma(-\beta (h_w - h_l))

Three things follow that are often read out of the logs as bugs. Before the first step
the loss is ln 2, not 0, and its gradient is not 0. A large beta keeps the policy near
the reference, a small one lets it go. And only the margin is optimised: both log-probs
may fall, the chosen one too, while mass moves to responses that nobody compared.

Source: Rafailov et al., arXiv:2305.18290, equations 4 to 7.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_positive


def require_rows(**logprobs: Tensor) -> None:
    """Require finite vectors of one length: one log-probability for each response.

    A column (B, 1) beside a row (B,) would become (B, B) without a word, and -inf minus
    -inf is NaN: where the reference never goes there is no log-ratio.

    >>> import torch
    >>> require_rows(chosen=torch.zeros(2), rejected=torch.zeros(2, 1))
    Traceback (most recent call last):
    ValueError: rejected must be of shape (B,) with B = 2, got (2, 1) ...
    """
    rows = next(iter(logprobs.values())).numel()
    for name, value in logprobs.items():
        need, remedy = f"of shape (B,) with B = {rows}", "give one for each response"
        require(rows > 0 and value.shape == (rows,), name, value, need, remedy)
        remedy = "score the tokens by the distribution that can produce them"
        require(bool(value.isfinite().all()), name, value.tolist(), "finite", remedy)


def log_ratio_margin(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """h_w - h_l, what all losses with a reference are made of; it is constant in ref.

    Raises:
        ValueError: log-probs that are not finite, or not all of one shape (B,).

    >>> import torch
    >>> log_ratio_margin(*torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]]))
    tensor([3.])
    """
    require_rows(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
    )
    ref_margin = (ref_chosen - ref_rejected).detach()
    return (policy_chosen - policy_rejected) - ref_margin


def dpo_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " B"]:
    r"""The loss of each pair; train on the mean.

    .. math:: L = -(1 - \epsilon) \log \sigma(\beta m) - \epsilon \log \sigma(-\beta m)

    where m is the margin ``log_ratio_margin``. With label smoothing it is conservative
    DPO: verdicts are wrong with probability epsilon, so a margin of
    :math:`\log((1 - \epsilon) / \epsilon) / \beta` is enough, and more is punished.

    Args:
        policy_chosen, policy_rejected: log-probs of the responses in nats, SUMMED over
            their tokens (``sequence_logprobs``).
        ref_chosen, ref_rejected: the same by the frozen reference; no gradient.
        beta: the price of a nat of KL, in units of the reward.
        label_smoothing: epsilon, the part of the verdicts that is wrong.

    Raises:
        ValueError: beta that is not positive, epsilon outside 0..1/2, log-probs that
            are not finite, or not all of one shape (B,).

    Source: Rafailov et al., equation 7; for label smoothing, Mitchell, "A note on DPO
    with noisy preferences" (2023). Differs from TRL: its ``loss_type="sigmoid"`` takes
    ``label_smoothing`` and ignores it.

    >>> import torch
    >>> dpo_loss(*torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]]), beta=0.1)
    tensor([0.5544])
    """
    require_positive(beta=beta)
    inside = 0 <= label_smoothing <= 0.5
    require(inside, "label_smoothing", label_smoothing, "in 0..0.5", "0 has none")
    z = beta * log_ratio_margin(
        policy_chosen, policy_rejected, ref_chosen, ref_rejected
    )
    # logsigmoid: log(sigmoid(-90)) is -inf in float32, and its gradient NaN.
    right, flipped = -F.logsigmoid(z), -F.logsigmoid(-z)
    return (1 - label_smoothing) * right + label_smoothing * flipped


def dpo_rewards(
    logprobs: Float[Tensor, " B"], ref_logprobs: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    r"""The reward that a policy stands for, up to a constant for each prompt.

    .. math:: \hat r(x, y) = \beta (\log \pi(y|x) - \log \pi_{ref}(y|x))

    It is the reward for which this policy would be optimal. It is the *true* one, less
    :math:`\beta \log Z(x)`, only if the policy is the true optimum.

    Source: Rafailov et al., section 4 and equation 5.

    >>> import torch
    >>> dpo_rewards(torch.tensor([-10.0]), torch.tensor([-12.0]), beta=0.5)
    tensor([1.])
    """
    require_rows(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs)


@dataclass(frozen=True)
class RewardMetrics:
    """Means over a batch of pairs, of what the policy's own rewards say about them.

    Args:
        chosen, rejected: mean implicit rewards.
        margin: chosen - rejected.
        accuracy: the part of the pairs whose chosen reward is larger; equal rewards
            count one half.
    """

    chosen: float
    rejected: float
    margin: float
    accuracy: float


def reward_metrics(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]
) -> RewardMetrics:
    """What to log. Watch margin and accuracy; chosen alone may fall without a bug.

    Differs from TRL: it counts equal rewards as wrong, so that its accuracy is 0 before
    the first step, when all rewards are 0 and nothing has been said; here it is 1/2.

    >>> import torch
    >>> reward_metrics(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).accuracy
    0.75
    """
    require_rows(chosen=chosen, rejected=rejected)
    margins = chosen - rejected
    right = (margins.sign() + 1) / 2
    means = (chosen, rejected, margins, right)
    return RewardMetrics(*(x.detach().mean().item() for x in means))
