r"""Preferences in a closed world: the expected loss, and the policy that minimises it.

Where all responses to a prompt can be listed, a policy is a table of log-probabilities
and the expectation over pairs is a double sum. Nothing is sampled, so what a loss is
minimised by can be *computed*, and compared with the optimum of RLHF:

.. math:: L(\pi) = \frac{1}{N (N - 1)} \sum_{i \ne j} P(y_i \succ y_j) \,
          \ell(\pi; y_w = y_i, y_l = y_j)

For DPO and verdicts by Bradley-Terry the minimum is :math:`\pi_{ref} e^{r/\beta} / Z`,
whichever pairs are compared, as long as they connect all responses: each pair fixes one
difference of log-ratios, and the differences fix the table.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def bradley_terry(rewards: Float[Tensor, " N"]) -> Float[Tensor, "N N"]:
    """P(i is chosen over j), for all pairs.

    >>> bradley_terry(torch.tensor([0.0, 0.0]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    return torch.sigmoid(rewards[:, None] - rewards)


def expected_loss(
    logprobs: Float[Tensor, " N"],
    ref_logprobs: Float[Tensor, " N"],
    preference: Float[Tensor, "N N"],
    loss: PairLoss,
) -> Float[Tensor, ""]:
    """The mean of a loss over all ordered pairs of different responses.

    Args:
        logprobs: of the policy, for each response.
        ref_logprobs: of the reference, all finite.
        preference: P(i is chosen over j); the diagonal is not looked at.
        loss: (policy_chosen, policy_rejected, ref_chosen, ref_rejected) -> (B,).

    Raises:
        ValueError: sizes that do not belong together, fewer than two responses.

    >>> from minillm.alignment.dpo import dpo_loss
    >>> even, verdicts = torch.tensor([0.5, 0.5]).log(), torch.full((2, 2), 0.5)
    >>> expected_loss(even, even, verdicts, lambda *p: dpo_loss(*p, 0.1))   # ln(2) / 2
    tensor(0.3466)
    """
    N = len(logprobs)
    require(N > 1, "logprobs", N, "at least 2 responses", "there is nothing to compare")
    need = f"of shape {(N, N)}"
    fits = preference.shape == (N, N)
    require(fits, "preference", preference, need, "give P(i over j) for all pairs")
    i, j = (~torch.eye(N, dtype=torch.bool)).nonzero().unbind(1)
    losses = loss(logprobs[i], logprobs[j], ref_logprobs[i], ref_logprobs[j])
    return (preference[i, j] * losses).mean()


def minimise(
    objective: Callable[[Float[Tensor, " N"]], Float[Tensor, ""]],
    start: Float[Tensor, " N"],
    steps: int = 500,
) -> Float[Tensor, " N"]:
    """The log-probabilities at which an objective is smallest, by L-BFGS on the logits.

    Args:
        objective: of the log-probabilities of a policy.
        start: log-probabilities to begin with, in float64 for an exact answer.
        steps: iterations at most.

    >>> even = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    >>> minimise(lambda logp: -0.8 * logp[0] - 0.2 * logp[1], even).exp()
    tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    logits = start.detach().clone().requires_grad_()
    settings = {"tolerance_grad": 1e-13, "tolerance_change": 1e-16}
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, line_search_fn="strong_wolfe", **settings
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(logits.log_softmax(-1))
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)
