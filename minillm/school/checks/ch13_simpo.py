"""Chapter 13: SimPO, a margin per token without a reference."""

import torch
import torch.nn.functional as F

from minillm.alignment.reference_free import simpo_loss
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def simpo_of_sums(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """The same loss from summed log-probs and the lengths of the responses."""
    means = chosen / chosen_lengths, rejected / rejected_lengths
    return simpo_loss(*means, beta=beta, gamma=gamma)


def pairs(seed: int) -> dict:
    """Summed log-probs of responses of unequal lengths."""
    rng = torch.Generator().manual_seed(seed)
    n = torch.tensor([3, 11, 6, 20]), torch.tensor([9, 4, 7, 5])
    sums = [-x * (0.2 + 2 * torch.rand(4, generator=rng)) for x in n]
    one = [x[1:2] for x in (*sums, *n)]
    return {
        "unequal lengths": (*sums, *n, 2.0, 0.5),
        "a larger beta": (*sums, *n, 10.0, 3.0),
        "no margin": (*sums, *n, 2.0, 0.0),
        "a single pair": (*one, 2.5, 1.4),
    }


def sums_not_means(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """The sums were compared. Without a reference the shorter response then wins
    whatever it says: divide each by its own length."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def one_length_for_both(
    chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma
):
    """Both were divided by the length of the chosen response. Each has its own."""
    return simpo_loss(chosen / chosen_lengths, rejected / chosen_lengths, beta, gamma)


def gamma_inside_beta(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """gamma was multiplied by beta. It is a margin of the reward, which has its beta
    already: subtract it afterwards."""
    return simpo_of_sums(
        chosen, rejected, chosen_lengths, rejected_lengths, beta, beta * gamma
    )


def gamma_added(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """The margin was added, so a pair counts as won although it is lost by gamma.
    Subtract it: the chosen response must win by gamma."""
    means = chosen / chosen_lengths - rejected / rejected_lengths
    return -F.logsigmoid(beta * means + gamma)


def gamma_forgotten(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """There is no margin. The chosen response must win by gamma."""
    return simpo_of_sums(chosen, rejected, chosen_lengths, rejected_lengths, beta, 0.0)


def swapped(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    """Chosen and rejected change places. The chosen response comes first."""
    return simpo_of_sums(
        rejected, chosen, rejected_lengths, chosen_lengths, beta, gamma
    )


SIMPO_LOSS = Exercise(
    id="13.simpo_loss",
    kind="I",
    points=2,
    level=2,
    minutes=10,
    task="Write simpo_loss(chosen, rejected, chosen_lengths, rejected_lengths, beta, "
    "gamma): the loss of each pair, from SUMMED log-probs and lengths in tokens.",
    solution={"simpo_loss": simpo_of_sums},
    check=agrees("simpo_loss", pairs, wrt=[0, 1]),
    mutants={
        "simpo_loss": (
            sums_not_means,
            one_length_for_both,
            gamma_inside_beta,
            gamma_added,
            gamma_forgotten,
            swapped,
        )
    },
    hints=(
        "A response of 20 tokens and one of 4: which has the larger sum, and why?",
        "The reward is beta times the log-prob per token; the chosen one must win by "
        "gamma.",
        "-F.logsigmoid(beta * (chosen / chosen_lengths - rejected / rejected_lengths) "
        "- gamma).",
    ),
)
