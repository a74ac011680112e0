r"""Which token deserves the reward? Rewards per token, and GAE.

A response is scored once, at its end. PPO wants to know of every token whether it was
better than expected. Two steps lead there. First each token gets its reward, the price
of leaving the reference, and the last one the score of the whole:

.. math:: r_t = -\beta \, (\ln \pi(a_t) - \ln \pi_{ref}(a_t)) + [t = last] \cdot score

Then a critic V that guesses how much is still to come turns rewards into advantages,

.. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad
          A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad R_t = A_t + V_t

where V and A behind the last token are 0: the response is over, nothing is to come.
lambda = 0 trusts the critic after one step (little variance, biased by its errors),
lambda = 1 adds up all that really came (no bias, all the variance).

Source: Schulman et al. 2016 (GAE), equations 11 and 16; Ziegler et al. 2019, equation 2
for the penalty.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.alignment.kl import kl_k1
from minillm.alignment.masked import kept
from minillm.errors import require, require_mask


def last_action(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last True of each row, nowhere in a row that has none.

    Neither the last column (padding) nor the number of Trues less one (prompts and
    padding on the left) says where that is.

    >>> last_action(torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool()).int()
    tensor([[0, 0, 1, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """
    still_to_come = mask.flip(1).cumsum(1).flip(1)
    return mask & (still_to_come == 1)


@torch.no_grad()
def token_rewards(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    beta: float,
) -> Float[Tensor, "B T"]:
    r"""The reward of each action: a penalty for leaving the reference, then the score.

    .. math:: r_t = -\beta \, (\ln \pi(a_t) - \ln \pi_{ref}(a_t)) + [t = last] \, score

    So the rewards of a row add up to its score less beta times an estimate of
    KL(pi || pi_ref), and that sum is what RLHF maximises. A single log-ratio may be
    negative; only its mean over the policy's own samples is the KL. A response that was
    cut counts as ended: its score stands on its last token.

    Args:
        scores: of whole responses, from a reward model or a verifier.
        logprobs: of the policy that sampled, in nats.
        ref_logprobs: of the reference for the same tokens.
        mask: True at actions.
        beta: price of a nat, in units of the score; at least 0.

    Returns:
        0 where no action is, so in all of a row that has none.

    Raises:
        ValueError: shapes that do not belong together, a score that is not finite, an
            action to which policy or reference gives no probability at all.

    Source: Ziegler et al. 2019, equation 2; Stiennon et al. 2020, section 3.4.

    >>> logprobs, ref = torch.full((1, 3), -1.0), torch.full((1, 3), -2.0)
    >>> mask = torch.tensor([[True, True, False]])
    >>> token_rewards(torch.tensor([5.0]), logprobs, ref, mask, beta=0.1)
    tensor([[-0.1000,  4.9000,  0.0000]])
    """
    B_T = tuple(logprobs.shape)
    require_mask(mask, B_T)
    same, remedy = f"of shape {B_T}", "score the same tokens with both models"
    require(
        tuple(ref_logprobs.shape) == B_T, "ref_logprobs", ref_logprobs, same, remedy
    )
    fine = tuple(scores.shape) == B_T[:1] and bool(scores.isfinite().all())
    need, remedy = f"{B_T[0]} finite numbers", "look at the responses that have none"
    require(fine, "scores", scores.tolist(), need, remedy)
    require(beta >= 0, "beta", beta, "at least 0", "0 is no penalty")
    log_ratio = kl_k1(kept(logprobs, mask), kept(ref_logprobs, mask))
    finite, need = bool(log_ratio.isfinite().all()), "finite at actions"
    remedy = "sample without top-k, top-p and min-p, or score the reference without"
    require(finite, "logprobs - ref_logprobs", log_ratio, need, remedy)
    return torch.where(last_action(mask), scores[:, None], 0.0) - beta * log_ratio


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    r"""Generalised advantage estimation, backwards over the actions of each row.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad
              A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad R_t = A_t + V_t

    ``t + 1`` is the next *action* of the row: padding, prompts and what a tool wrote in
    between are stepped over, and behind the last action V = A = 0. Both results are
    constants to the losses; no gradient passes.

    Args:
        rewards: ``token_rewards``.
        values: V at each position *before* its action is chosen.
        mask: True at actions, anywhere in the row.
        gamma: discount; 1 for responses, which are short (0.99 to the 500th is 0.007).
        lam: lambda, 0 to 1.

    Returns:
        advantages and returns, both 0 where no action is. Returns are made of the
        advantages as they are here, *before* any whitening.

    Raises:
        ValueError: shapes that do not belong together, gamma or lambda outside 0..1,
            values or rewards at actions that are not finite.

    Source: Schulman et al. 2016, equations 11 and 16.

    >>> rewards = torch.tensor([[0.0, 0.0, 1.0]])
    >>> values = torch.tensor([[0.5, 0.6, 0.7]])
    >>> gae(rewards, values, values > 0, gamma=1.0, lam=0.95)[0]
    tensor([[0.4657, 0.3850, 0.3000]])
    """
    _check(rewards, values, mask, gamma, lam)
    advantage = next_value = torch.zeros_like(values[:, 0])
    columns = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        here = delta + gamma * lam * advantage
        # A column without an action hands on what came from the right, unchanged.
        advantage = torch.where(mask[:, t], here, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    returns = torch.where(mask, advantages + values, 0.0)
    return torch.where(mask, advantages, 0.0), returns


def _check(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float):
    B_T = tuple(rewards.shape)
    require(len(B_T) == 2 and B_T[1] > 0, "rewards", rewards, "(B, T)", "stack rows")
    remedy = "sequences are rows, steps are columns"
    fits = tuple(values.shape) == B_T
    require(fits, "values", values, f"of shape {B_T}, like rewards", remedy)
    require_mask(mask, B_T)
    for name, x in (("rewards", rewards), ("values", values)):
        finite = bool(x[mask].isfinite().all())
        require(finite, name, x, "finite at actions", "look where they come from")
    for name, x in (("gamma", gamma), ("lam", lam)):
        require(0 <= x <= 1, name, x, "in 0..1", "try gamma 1, lam 0.95")
