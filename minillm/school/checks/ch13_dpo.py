"""Chapter 13: the loss of DPO, and eight ways to get it wrong."""

import torch
import torch.nn.functional as F

from minillm.alignment.dpo import dpo_loss
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def pairs(seed: int) -> dict:
    """Four log-probs for each pair, and a beta that is not 1."""
    rng = torch.Generator().manual_seed(seed)
    four = [-20 - 10 * torch.rand(5, generator=rng) for _ in range(4)]
    sure = [4_000 * x for x in four]
    return {
        "five pairs": (*four, 0.1),
        "another beta": (*four, 0.7),
        "the reference itself": (*four[:2], *four[:2], 0.3),
        "a single pair": (*(x[:1] for x in four), 0.2),
        "margins of thousands": (*sure, 0.1),
    }


def _margin(pc, pr, rc, rr):
    return (pc - pr) - (rc - rr)


def swapped(pc, pr, rc, rr, beta):
    """Chosen and rejected change places: the model learns what annotators dislike.
    The margin is chosen minus rejected."""
    return -F.logsigmoid(-beta * _margin(pc, pr, rc, rr))


def reference_omitted(pc, pr, rc, rr, beta):
    """The reference does not occur, so nothing says how far the policy may go. Subtract
    the reference's margin."""
    return -F.logsigmoid(beta * (pc - pr))


def reference_added(pc, pr, rc, rr, beta):
    """The margin of the reference was added. What counts is by how much more than the
    reference the policy prefers the chosen response: subtract."""
    return -F.logsigmoid(beta * ((pc - pr) + (rc - rr)))


def beta_outside(pc, pr, rc, rr, beta):
    """beta multiplies the loss; there it is a learning rate. It belongs inside the
    sigmoid, where it sets how large a margin is enough."""
    return -beta * F.logsigmoid(_margin(pc, pr, rc, rr))


def divided_by_beta(pc, pr, rc, rr, beta):
    """The margin was divided by beta. Rewards are beta times log-ratios: multiply."""
    return -F.logsigmoid(_margin(pc, pr, rc, rr) / beta)


def log_of_sigmoid(pc, pr, rc, rr, beta):
    """log(sigmoid(x)) is -inf as soon as the sigmoid rounds to 0, and its gradient is
    NaN. Use ``logsigmoid``."""
    return -torch.log(torch.sigmoid(beta * _margin(pc, pr, rc, rr)))


def no_logarithm(pc, pr, rc, rr, beta):
    """This is the probability of the wrong verdict, not its surprise. Where it is wrong
    for sure it has no gradient; take the logarithm."""
    return torch.sigmoid(-beta * _margin(pc, pr, rc, rr))


def mean_of_the_batch(pc, pr, rc, rr, beta):
    """This is the mean over the batch. Return the loss of each pair; the caller takes
    the mean."""
    return dpo_loss(pc, pr, rc, rr, beta).mean()


DPO_LOSS = Exercise(
    id="13.dpo_loss",
    kind="I",
    points=3,
    level=1,
    minutes=15,
    task="Write dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, "
    "beta): the loss of each pair, from summed log-probs. It must be finite for "
    "margins of any size.",
    solution={"dpo_loss": dpo_loss},
    check=agrees("dpo_loss", pairs, wrt=[0, 1]),
    mutants={
        "dpo_loss": (
            swapped,
            reference_omitted,
            reference_added,
            beta_outside,
            divided_by_beta,
            log_of_sigmoid,
            no_logarithm,
            mean_of_the_batch,
        )
    },
    hints=(
        "How much more than the reference does the policy prefer the chosen response?",
        "The margin is a difference of two log-ratios. The loss is the surprise of a "
        "verdict that comes with probability sigmoid(beta * margin).",
        "-F.logsigmoid(beta * ((policy_chosen - policy_rejected) - (ref_chosen - "
        "ref_rejected))).",
    ),
)
