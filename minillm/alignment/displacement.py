r"""Likelihood displacement in the smallest world that shows it.

Four responses and a model with three weights: the score of a response is the product of
weights and features, so responses that have a feature in common move together, as in a
network. Two of them are compared, the other two are not.

    response     repetition   courtesy   novelty
    chosen            1           1         0
    rejected          2           0         0
    silent           -3           0         0     nobody compares it
    other             0           0         1     nor it

To prefer the chosen response a gradient of the margin follows the *difference* of the
two: less of what both have, more of what only the chosen one has. What is furthest from
both then takes the mass, and the chosen response may become rarer although the margin
grows. In a table, where nothing is shared, this cannot happen.

Everything is exact: three weights, four probabilities, plain gradient descent.

Source: the setting is ours; the effect, Razin et al., arXiv:2410.08847, section 4. The
NLL term as a mending, Pang et al., arXiv:2404.19733, equation 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.dpo import dpo_loss
from minillm.alignment.preference_losses import hinge_loss, ipo_loss
from minillm.errors import require, require_count, require_one_of, require_positive

RESPONSES = ("chosen", "rejected", "silent", "other")
FEATURES = ((1.0, 1.0, 0.0), (2.0, 0.0, 0.0), (-3.0, 0.0, 0.0), (0.0, 0.0, 1.0))
LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "hinge": hinge_loss}
LR = 0.1


@dataclass(frozen=True)
class Displacement:
    """A training run on one pair.

    Args:
        loss: one of ``LOSSES``.
        beta: of the loss.
        nll: weight of the chosen response's NLL, added to the loss; 0 leaves it out.
        steps: of gradient descent, at most 1,000.

    Raises:
        ValueError: a setting out of its range.
    """

    loss: str = "dpo"
    beta: float = 0.5
    nll: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        require_one_of(LOSSES, loss=self.loss)
        require_positive(beta=self.beta)
        require(self.nll >= 0, "nll", self.nll, "at least 0", "0 leaves it out")
        require_count(steps=self.steps)
        require(self.steps <= 1_000, "steps", self.steps, "at most 1,000", "try 100")


def displace(run: Displacement) -> Float[Tensor, "S+1 4"]:
    """The log-probabilities of the four responses, before training and at each step.

    >>> path = displace(Displacement(steps=50))
    >>> path[0].exp()                        # nothing is known: all are equally likely
    tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    >>> path[-1].exp() < path[0].exp()       # chosen and rejected have become rarer
    tensor([ True,  True, False,  True])
    """
    features = torch.tensor(FEATURES, dtype=torch.float64)
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ref, path = torch.zeros(4, dtype=torch.float64).log_softmax(-1), []
    for _ in range(run.steps + 1):
        logp = (features @ weights).log_softmax(-1)
        path.append(logp.detach())
        pair = (logp[:1], logp[1:2], ref[:1], ref[1:2])
        loss = LOSSES[run.loss](*pair, beta=run.beta) - run.nll * logp[:1]
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        weights = (weights - LR * gradient).detach().requires_grad_()
    return torch.stack(path)


def outcome(run: Displacement) -> dict[str, bool]:
    """What a run has to show to be called mended: four sentences, true or false.

    >>> [*outcome(Displacement()).values()]   # plain DPO
    [True, False, False, False]
    """
    path = displace(run)
    change = dict(zip(RESPONSES, (path[-1] - path[0]).tolist(), strict=True))
    kl = (path[-1].exp() * (path[-1] - path[0])).sum().item()
    return {
        "the chosen response gains a nat on the rejected one": (
            change["chosen"] - change["rejected"] >= 1
        ),
        "the chosen response becomes no rarer": change["chosen"] >= 0,
        "no response that nobody compared becomes likelier": (
            max(change["silent"], change["other"]) <= 0
        ),
        "the policy moves by less than a nat": kl < 1,
    }
