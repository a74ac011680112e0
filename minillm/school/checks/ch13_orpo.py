"""Chapter 13: ORPO, fine-tuning with a penalty on odds."""

import torch
import torch.nn.functional as F

from minillm.alignment.reference_free import log_odds_ratio, orpo_loss
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def pairs(seed: int) -> dict:
    """Log-probs per token, from improbable to nearly certain."""
    rng = torch.Generator().manual_seed(seed)
    chosen, rejected = (-0.1 - 2 * torch.rand(5, generator=rng) for _ in range(2))
    certain = -torch.tensor([3e-7, 1e-6, 2e-6])
    return {
        "five pairs": (chosen, rejected, 0.3),
        "another beta": (chosen, rejected, 1.7),
        "a single pair": (chosen[:1], rejected[:1], 0.5),
        "rejected is nearly certain": (chosen[:3], certain, 0.8),
        "chosen is nearly certain": (certain, rejected[:3], 0.8),
    }


def probabilities_not_odds(chosen, rejected, beta):
    """This is the ratio of probabilities. The odds are p / (1 - p): where p is large,
    they are far larger."""
    return -chosen - beta * F.logsigmoid(chosen - rejected)


def no_fine_tuning(chosen, rejected, beta):
    """The NLL of the chosen response is missing. ORPO is fine-tuning with a penalty;
    without the first term nothing keeps the text fluent."""
    return -beta * F.logsigmoid(log_odds_ratio(chosen, rejected))


def fine_tuned_on_both(chosen, rejected, beta):
    """The rejected response is imitated, too. Only the chosen one has an NLL."""
    return orpo_loss(chosen, rejected, beta) - rejected


def swapped(chosen, rejected, beta):
    """The odds ratio is upside down: chosen over rejected."""
    return -chosen - beta * F.logsigmoid(log_odds_ratio(rejected, chosen))


def beta_on_the_nll(chosen, rejected, beta):
    """beta weighs the odds ratio, not the NLL."""
    return -beta * chosen - F.logsigmoid(log_odds_ratio(chosen, rejected))


def beta_inside(chosen, rejected, beta):
    """beta stands in front of the logarithm here, not inside the sigmoid as in DPO."""
    return -chosen - F.logsigmoid(beta * log_odds_ratio(chosen, rejected))


def one_minus_p_rounded(chosen, rejected, beta):
    """1 - exp(x) has lost most of its digits where x is near 0. -expm1(x) keeps them:
    log(1 - p) = log(-expm1(log p))."""

    def log_odds(x):
        return x - (1 - x.exp()).clamp(min=1e-12).log()

    ratio = log_odds(chosen) - log_odds(rejected)
    return -chosen - beta * F.logsigmoid(ratio)


ORPO_LOSS = Exercise(
    id="13.orpo_loss",
    kind="I",
    points=3,
    level=3,
    minutes=20,
    task="Write orpo_loss(chosen, rejected, beta): the loss of each pair, from "
    "log-probs per token. It must be exact where a response is nearly certain, also in "
    "float32.",
    solution={"orpo_loss": orpo_loss},
    check=agrees("orpo_loss", pairs, wrt=[0, 1]),
    mutants={
        "orpo_loss": (
            probabilities_not_odds,
            no_fine_tuning,
            fine_tuned_on_both,
            swapped,
            beta_on_the_nll,
            beta_inside,
            one_minus_p_rounded,
        )
    },
    hints=(
        "What are the odds of something that happens 9 times in 10? Of 1 in 10?",
        "Log odds are log p - log(1 - p). The loss is the chosen response's NLL, plus "
        "beta times the surprise at its winning by odds.",
        "log1mexp = (-torch.expm1(x)).log(); ratio = (c - log1mexp(c)) - (r - "
        "log1mexp(r)); -c - beta * F.logsigmoid(ratio).",
    ),
)
