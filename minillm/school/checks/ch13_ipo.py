"""Chapter 13: IPO, a margin to reach and not to exceed."""

import torch
import torch.nn.functional as F

from minillm.alignment.preference_losses import ipo_loss
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def pairs(seed: int) -> dict:
    """Log-probs of policy and reference, with margins on both sides of the goal."""
    rng = torch.Generator().manual_seed(seed)
    four = [-40 * torch.rand(6, generator=rng) - 1 for _ in range(4)]
    one = [x[:1] for x in four]
    same = [x.clone() for x in (four[2], four[3])]
    return {
        "six pairs": (*four, 0.1),
        "a larger beta": (*four, 0.7),
        "before the first step": (*same, *four[2:], 0.2),
        "a single pair": (*one, 0.05),
    }


def sigmoid_kept(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """This is DPO, whose margin never has enough. IPO squares the distance to a margin
    that is to be reached."""
    margin = policy_chosen - policy_rejected - ref_chosen + ref_rejected
    return -F.logsigmoid(beta * margin)


def beta_times_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """beta was multiplied in, as in DPO: (beta m - 1/2)^2. It is this loss times beta
    squared, so another learning rate for each beta. Leave the margin as it is."""
    return beta**2 * ipo_loss(
        policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta
    )


def twice_as_far(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """The goal is 1 / beta here, where the hinge ends. IPO's is half of it."""
    return ipo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta / 2)


def one_sided(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Margins beyond the goal cost nothing here. IPO pulls them back: the square counts
    on both sides."""
    margin = policy_chosen - policy_rejected - ref_chosen + ref_rejected
    return (1 / (2 * beta) - margin).clamp(min=0) ** 2


def reference_omitted(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """The reference does not occur. The margin is that of log-ratios: subtract the
    reference's."""
    return (policy_chosen - policy_rejected - 1 / (2 * beta)) ** 2


def swapped(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """The rejected response is to win here. The chosen one comes first."""
    return ipo_loss(policy_rejected, policy_chosen, ref_rejected, ref_chosen, beta)


IPO_LOSS = Exercise(
    id="13.ipo_loss",
    kind="I",
    points=2,
    level=2,
    minutes=10,
    task="Write ipo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, "
    "beta): the loss of each pair, from summed log-probs. It is smallest where the "
    "margin of the log-ratios is 1 / (2 beta), and there it is 0.",
    solution={"ipo_loss": ipo_loss},
    check=agrees("ipo_loss", pairs, wrt=[0, 1]),
    mutants={
        "ipo_loss": (
            sigmoid_kept,
            beta_times_margin,
            twice_as_far,
            one_sided,
            reference_omitted,
            swapped,
        )
    },
    hints=(
        "DPO's margin, another curve over it. Where is its lowest point?",
        "The margin is (policy_chosen - policy_rejected) less the same of the "
        "reference.",
        "(margin - 1 / (2 * beta)) ** 2.",
    ),
)
