"""Whose wishes does DPO learn? Annotators with biases, tastes and slips.

The zoo's fine-tuned model is trained by DPO on the same pairs, ordered by one of

    fair            Bradley-Terry on the true reward
    length-biased   every word is worth 0.3 to them, whatever it says
    with a taste    manners count for them four times as much, and truth a quarter
    many tastes     five who take turns; each cares twice as much about one feature and
                    less about the others, so that their mean is the true reward
    noisy           they press the wrong button three times in ten

Measured on held-out instructions and pairs, as in the study of the family:

    reward, right, polite, tokens   of what it says
    accuracy, agreement             its implicit reward against the truth, and with the
                                    verdicts of its own annotators on held-out pairs
    ceiling                         how often these verdicts are the truth: an implicit
                                    reward that were the true one would agree so often
    longer, politer                 share of held-out pairs that differ in length (in
                                    manners), in which its implicit reward is higher for
                                    the longer (the politer) response
    wrong                           the same for pairs of a right and a wrong answer:
                                    how often the wrong one is preferred

What this cannot say: how annotators of flesh and blood differ. And pairs from
elsewhere change what the model says far less than what it prefers, so a bias shows in
the second before it shows in the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minillm.alignment import PreferConfig, prefer
from minillm.model import GPT
from minillm.school.preferring import Trial, begin, judged
from minillm.school.studies import run_study
from minillm.world.preferences import FEATURES, WEIGHTS, Annotator, features
from minillm.world.questions import Question

QUESTION = "Whose wishes does DPO learn?"
SEEDS, STEPS, B, BETA, LR = (0, 1, 2), 60, 16, 0.1, 1e-4
TASTE = {"correctness": 0.5, "politeness": 2.0}


def many() -> list[Annotator]:
    """Each doubles one weight; what is left over keeps the mean at the true weights."""
    n = len(FEATURES)
    less = (n - 2) / (n - 1)
    return [
        Annotator(taste={f: WEIGHTS[f] * (2 if f == own else less) for f in FEATURES})
        for own in FEATURES
    ]


ANNOTATORS: dict[str, Sequence[Annotator]] = {
    "fair": [Annotator()],
    "length-biased": [Annotator(length_bias=0.3)],
    "with a taste": [Annotator(taste={**WEIGHTS, **TASTE})],
    "many tastes": many(),
    "noisy": [Annotator(error=0.3)],
}
ARMS = {"nobody": {}} | {name: {"who": name} for name in ANNOTATORS}


def sides(trial: Trial, feature: Callable[[Question, str], float]) -> Tensor:
    """By how much the chosen response of each held-out pair has more of a feature."""
    told = [(v.question, v.chosen, v.rejected) for _, v in trial.pairs]
    return torch.tensor([float(feature(q, a)) - feature(q, b) for q, a, b in told])


def preferring(trial: Trial, model: GPT) -> dict[str, float]:
    """How often the implicit reward is higher for more of something."""
    change = trial.scores(model) - trial.scores(trial.ref)
    margin = -change.diff(dim=1)[:, 0]
    asked = {
        "longer": sides(trial, lambda q, text: len(text.split())),
        "politer": sides(trial, lambda q, text: features(q, text)["politeness"]),
        "wrong": -sides(trial, lambda q, text: features(q, text)["correctness"]),
    }
    found = {}
    for name, more in asked.items():
        order = (margin * more).sign()[more != 0]
        found[name] = round((order.mean().item() + 1) / 2, 4)
    return found


def run(seed: int, who: str = "") -> dict:
    """Train on verdicts of somebody, and measure."""
    model, trial = begin(seed)
    annotators, lore = ANNOTATORS[who or "fair"], trial.lore
    held_out = judged(lore, len(trial.pairs), annotators, "trial", held_out=True)
    trial = replace(trial, pairs=held_out)
    if who:
        pairs = judged(lore, STEPS * B, annotators, f"train {seed}")
        config = PreferConfig(STEPS, BETA, LR)
        prefer(model, trial.ref, trial.batches(pairs, seed, B), config, progress=False)
    better = sides(trial, Annotator().utility)
    ceiling = round((better > 0).float().mean().item(), 4)
    return trial.measure(model) | {"ceiling": ceiling} | preferring(trial, model)


if __name__ == "__main__":
    for seed in SEEDS:
        begin(seed)  # trained here, or the first run would pay for it
    run_study(__file__, QUESTION, ARMS, SEEDS, run)
