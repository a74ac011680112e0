r"""A number behind every choice: how rewards are learned from pairs.

Nobody can say how good a response is on a scale, but anybody can say which of two is
better. Bradley and Terry suppose a number behind every choice,

.. math:: P(a \succ b) = \sigma(r_a - r_b), \qquad
          L = -\log \sigma(r_{chosen} - r_{rejected})

and the numbers that make the choices most probable are the reward. It is the logistic
loss on a difference. Only the difference is learned: to add the same to both changes
nothing, so rewards have no zero until they are given one, and a reward of 3 says
nothing by itself. The scale is real: it says how sure the annotators were.

Source: Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require


def bradley_terry_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, ""]:
    r"""Mean surprise in nats at the choices that were made.

    .. math:: L = -\frac{1}{B} \sum \log \sigma(r_{chosen} - r_{rejected} - m)

    Args:
        chosen: rewards of the responses that were preferred.
        rejected: rewards of the others, in the same order.
        margin: by how much the difference should be larger than 0; one number, or one
            for each pair where annotators said how much better the chosen one is.

    Raises:
        ValueError: no pairs, numbers of unequal length, rewards that are no numbers.

    Source: Ouyang et al. 2022, equation 1; Touvron et al. 2023 (Llama 2), equation 2,
    for the margin.

    >>> import torch
    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([1.0]))   # ln(1 + e^-2)
    tensor(0.1269)
    """
    require_pairs(chosen, rejected)
    # logsigmoid: the log of a sigmoid is -inf at -100 already, and its gradient NaN
    return -F.logsigmoid(chosen - rejected - margin).mean()


def centring_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    r"""A zero for rewards: the mean square of the sum of each pair.

    .. math:: L = \frac{1}{B} \sum (r_{chosen} + r_{rejected})^2

    Added with a small factor (0.01), it keeps the middle of each pair near 0, and the
    differences as they are. The squares of both rewards would pull at the differences.

    Raises:
        ValueError: as ``bradley_terry_loss``.

    Source: Eisenstein et al. 2023, "Helping or Herding?"; TRL calls the factor
    ``center_rewards_coefficient``.

    >>> import torch
    >>> centring_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, -1.0]))
    tensor(8.)
    """
    require_pairs(chosen, rejected)
    return (chosen + rejected).square().mean()


def pair_accuracy(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> float:
    """The part of the pairs in which the chosen one has the larger reward.

    Equal rewards count one half, as a coin would. So a model that gives the same to all
    has 0.5. Differs from TRL: equal rewards count 0.

    Raises:
        ValueError: as ``bradley_terry_loss``.

    >>> import torch
    >>> pair_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]))
    0.75
    """
    require_pairs(chosen, rejected)
    right = (chosen > rejected).double() + (chosen == rejected).double() / 2
    return right.mean().item()


def require_pairs(chosen: Tensor, rejected: Tensor) -> None:
    """Require as many rewards of chosen responses as of rejected, and numbers all.

    >>> import torch
    >>> require_pairs(torch.zeros(2), torch.zeros(1))
    Traceback (most recent call last):
    ValueError: rejected must be of shape (2,), as chosen, got (1,) of torch.float...
    """
    n, need = tuple(chosen.shape), f"of shape {tuple(chosen.shape)}, as chosen"
    same, remedy = chosen.shape == rejected.shape, "give one for each pair"
    require(same, "rejected", rejected, need, remedy)
    require(chosen.numel() > 0, "chosen", n, "at least 1 reward", remedy)
    numbers = not (chosen - rejected).isnan().any()
    remedy = "find the response whose reward is NaN or infinite"
    require(bool(numbers), "rewards", chosen - rejected, "numbers", remedy)
