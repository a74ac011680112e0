r"""The group is the critic: advantages from comparing responses to one prompt.

To know whether a response was better than expected one can ask a critic, or ask the
policy several times and compare. With rewards r_1 ... r_G of G responses to one prompt,

.. math:: GRPO: \frac{r_i - \bar r}{s + \epsilon}, \qquad Dr. GRPO: r_i - \bar r, \qquad
          RLOO: r_i - \frac{1}{G - 1} \sum_{j \neq i} r_j

and every token of response i gets the same advantage. A group whose rewards are all
equal has nothing to say: its advantages are exactly 0.

Source: Shao et al. 2024 (DeepSeekMath, arXiv:2402.03300), section 4.1; Liu et al. 2025
(Dr. GRPO, 2503.20783); Ahmadian et al. 2024 (RLOO, 2402.14740).
"""

from jaxtyping import Float
from torch import Tensor

from minillm.errors import require


def group_advantages(
    rewards: Float[Tensor, "P G"], normalize: bool = True, eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    r"""How much better each response is than its group.

    .. math:: A_i = (r_i - \bar r) / (s + \epsilon)

    Args:
        rewards: a row for each prompt, a column for each of its G responses. For
            ``view(-1, G)`` the responses to a prompt must stand together: prompts by
            ``repeat_interleave``, not by ``repeat``.
        normalize: False leaves the division out (Dr. GRPO); it lets groups that are
            nearly all right, or nearly all wrong, weigh more than others.
        eps: added to the deviation.

    Returns:
        advantages whose rows add up to 0, exactly 0 where all rewards are equal. The
        mean holds the response itself, so differences of rewards count (G - 1) / G of
        what they are; a KL in the loss is not made smaller with them.

    Raises:
        ValueError: groups of one (their advantage is always 0), rewards that are not
            finite or are no (P, G).

    Source: Shao et al. 2024, section 4.1.2; Liu et al. 2025, section 3.2, for
    normalize=False. The deviation is that of a sample (G - 1), and eps is added to it,
    as in TRL; the paper says neither.

    >>> import torch
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    centred = _centred(rewards)
    if not normalize:
        return centred
    return centred / (centred.std(dim=1, keepdim=True) + eps)


def rloo_advantages(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    r"""Each reward less the mean of the *others* of its group.

    .. math:: A_i = r_i - \frac{1}{G - 1} \sum_{j \neq i} r_j
                  = \frac{G}{G - 1} (r_i - \bar r)

    The baseline does not know the response that it is taken from, so the gradient is
    unbiased. It is the centred reward of Dr. GRPO but for a constant factor.

    Args:
        rewards: as for ``group_advantages``.

    Raises:
        ValueError: as ``group_advantages``.

    Source: Kool et al. 2019; Ahmadian et al. 2024, section 2.

    >>> import torch
    >>> rloo_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    tensor([[ 0.6667, -0.6667, -0.6667,  0.6667]])
    """
    G = rewards.shape[-1]
    return _centred(rewards) * (G / (G - 1))


def _centred(rewards: Tensor) -> Float[Tensor, "P G"]:
    shaped = rewards.dim() == 2 and rewards.shape[1] > 1
    remedy = "reshape by view(-1, G), and sample at least 2 responses to a prompt"
    require(shaped, "rewards", rewards, "(P, G) with G of at least 2", remedy)
    floats = rewards if rewards.is_floating_point() else rewards.float()
    remedy = "look at the responses that have none"
    require(bool(floats.isfinite().all()), "rewards", rewards, "finite", remedy)
    # From the first of the group: equal rewards leave exactly 0, not a rounding error
    # that eps, being small too, would not hide.
    centred = floats - floats[:, :1]
    return centred - centred.mean(dim=1, keepdim=True)
