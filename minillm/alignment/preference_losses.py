r"""Other losses on DPO's margin: for wrong labels, for certain labels, and a hinge.

All begin with the margin of the log-ratios,

.. math:: m = (\log \pi_w - \log \pi_l) - (\log \pi^{ref}_w - \log \pi^{ref}_l)

and differ in how far it should grow. DPO never has enough: a pair whose verdicts all go
one way has its optimum at an infinite margin, where beta holds nothing back any more.

    dpo       -log sigmoid(beta m)        grows for ever, ever more slowly
    smoothed  dpo, both labels mixed      stops where sigmoid(beta m) = 1 - epsilon
    robust    dpo, wrong labels undone    its mean over wrong labels is the clean dpo
    hinge     max(0, 1 - beta m)          stops at m = 1 / beta
    ipo       (m - 1 / (2 beta))^2        pulls to m = 1 / (2 beta) from both sides
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.dpo import dpo_loss, log_ratio_margin
from minillm.errors import require, require_positive


def robust_dpo_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
    beta: float,
    flip_rate: float,
) -> Float[Tensor, " B"]:
    r"""DPO that is right in the mean although a known part of the labels is flipped.

    .. math:: L = \frac{(1 - \epsilon) L_{DPO}(w, l) - \epsilon L_{DPO}(l, w)}
                       {1 - 2 \epsilon}

    Averaged over flips, :math:`(1 - \epsilon) L(w, l) + \epsilon L(l, w)`, this is the
    DPO loss of the clean labels. The price is variance, and a loss that falls below
    zero without a bound: below zero is no bug here.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: of ``dpo_loss``.
        flip_rate: epsilon, the part of the labels that is flipped.

    Raises:
        ValueError: as ``dpo_loss``; a rate outside 0..1/2 (at 1/2 labels say nothing).

    Source: Chowdhury, Kini and Natarajan, arXiv:2403.00409, section 3.

    >>> import torch
    >>> pair = torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]])
    >>> robust_dpo_loss(*pair, beta=0.1, flip_rate=0.2)
    tensor([0.4544])
    """
    require(0 <= flip_rate < 0.5, "flip_rate", flip_rate, "in [0, 0.5)", "try 0.1")
    flipped = (policy_rejected, policy_chosen, ref_rejected, ref_chosen)
    right = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    wrong = dpo_loss(*flipped, beta)
    return ((1 - flip_rate) * right - flip_rate * wrong) / (1 - 2 * flip_rate)


def hinge_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
    beta: float,
) -> Float[Tensor, " B"]:
    """The hinge of SLiC on the normalised margin: max(0, 1 - beta m) for each pair.

    A pair whose margin has reached 1 / beta teaches nothing more.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta: of ``dpo_loss``.

    Raises:
        ValueError: as ``dpo_loss``.

    Source: Zhao et al., arXiv:2305.10425 (SLiC-HF), section 2; with the reference in
    the margin, Liu et al., arXiv:2309.06657 (RSO), section 3.

    >>> import torch
    >>> hinge_loss(*torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]]), beta=0.1)
    tensor([0.7000])
    """
    require_positive(beta=beta)
    margin = log_ratio_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return F.relu(1 - beta * margin)


def ipo_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
    beta: float,
) -> Float[Tensor, " B"]:
    r"""A squared loss to a finite margin, for each pair.

    .. math:: L = (m - \frac{1}{2 \beta})^2

    DPO trusts Bradley-Terry: a verdict that always goes one way means a reward that is
    infinitely larger, and then no beta holds the policy. IPO asks for one margin and no
    more, so beta (tau in the paper) works even where all labels agree.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: of ``dpo_loss``, all
            summed (as the paper is written) or all averaged over tokens (as its authors
            say that they ran it, and as TRL does). The two need different betas: a sum
            over n tokens grows n times as fast.
        beta: tau; the margin to reach is 1 / (2 tau).

    Raises:
        ValueError: as ``dpo_loss``.

    Source: Azar et al., arXiv:2310.12036, equation 17.

    >>> import torch
    >>> ipo_loss(*torch.tensor([[-10.0], [-20.0], [-11.0], [-18.0]]), beta=0.1)
    tensor([4.])
    """
    require_positive(beta=beta)
    margin = log_ratio_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return (margin - 1 / (2 * beta)) ** 2
