"""Chapter 13: KTO, a loss for thumbs, and seven ways to get it wrong."""

import torch
import torch.nn.functional as F

from minillm.alignment.kto import kto_loss
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def thumbs(seed: int) -> dict:
    """Log-probs of liked and disliked responses, on both sides of the reference."""
    rng = torch.Generator().manual_seed(seed)
    ref = -20 - 5 * torch.rand(6, generator=rng)
    policy = ref + 8 * torch.randn(6, generator=rng)
    liked = torch.tensor([True, False, False, True, True, False])
    return {
        "both sides": (policy, ref, liked, 1.7, 0.1),
        "weights": (policy, ref, liked, 1.7, 0.3, 1.3, 2.1),
        "before the first step": (ref, ref, liked, 0.0, 0.1, 1.0, 1.5),
        "thumbs up only": (policy[:4], ref[:4], torch.ones(4) > 0, 0.9, 0.2),
        "a larger KL": (policy, ref, liked, 9.0, 0.2),
    }


def _loss(gain, desirable, up, down):
    weight = torch.where(desirable, up, down)
    return weight * torch.sigmoid(torch.where(desirable, -gain, gain))


def squared_and_clamped(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """A squared log-ratio that is held at zero has no slope at the reference, so
    training never starts. Use the sigmoid, which is steepest there."""
    ratio = beta * (policy - ref)
    wrong_side = torch.where(desirable, -ratio, ratio).clamp(min=0)
    return torch.where(desirable, up, down) * wrong_side**2


def kl_forgotten(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """Gains are counted from the reference itself, not from how far the policy has gone
    in general. Subtract the KL inside."""
    return kto_loss(policy, ref, desirable, 0.0, beta, up, down)


def kl_on_the_wrong_side(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """For thumbs down the KL has the wrong sign. Both sides look at r - z0, one from
    above, one from below: z0 - r, not - z0 - r."""
    r = policy - ref
    inside = beta * torch.where(desirable, r - kl, -r - kl)
    return torch.where(desirable, up, down) * torch.sigmoid(-inside)


def all_desirable(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """Thumbs down are treated as thumbs up, so all responses are raised. Turn the sign
    where the response was not liked."""
    r = beta * (policy - ref - kl)
    return torch.where(desirable, up, down) * torch.sigmoid(-r)


def weights_swapped(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """The two weights change places. The first belongs to what was liked."""
    return kto_loss(policy, ref, desirable, kl, beta, down, up)


def logarithm_taken(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """This is the logarithm of the sigmoid, as in DPO. KTO takes the value itself, so
    that both gains and losses saturate."""
    gain = beta * (policy - ref - kl)
    signed = torch.where(desirable, gain, -gain)
    return -torch.where(desirable, up, down) * F.logsigmoid(signed)


def beta_outside(policy, ref, desirable, kl, beta, up=1.0, down=1.0):
    """beta does not belong in front of the loss but inside, where it says how soon
    value saturates."""
    return beta * _loss(policy - ref - kl, desirable, up, down)


KTO_LOSS = Exercise(
    id="13.kto_loss",
    kind="I",
    points=3,
    level=2,
    minutes=20,
    task="Write kto_loss(policy, ref, desirable, kl, beta, desirable_weight=1.0, "
    "undesirable_weight=1.0): the loss of each response, given summed log-probs, "
    "labels and the reference point z0 = kl.",
    solution={"kto_loss": kto_loss},
    check=agrees("kto_loss", thumbs, wrt=[0]),
    mutants={
        "kto_loss": (
            squared_and_clamped,
            kl_forgotten,
            kl_on_the_wrong_side,
            all_desirable,
            weights_swapped,
            logarithm_taken,
            beta_outside,
        )
    },
    hints=(
        "At the reference, with kl = 0, each response should cost half of its weight. "
        "Which function is one half at zero?",
        "A response counts by how much further than kl it has moved. For thumbs down "
        "the difference is taken the other way round.",
        "weight * sigmoid(-beta * (policy - ref - kl)) where desirable, and "
        "weight * sigmoid(beta * (policy - ref - kl)) where not.",
    ),
)
