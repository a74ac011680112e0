"""Where does the mass go when DPO compares two responses that are nearly the same?

DPO looks at a margin: it may grow while both responses become less probable, and then
their mass goes to responses that nobody compared. Here annotators compare two refusals
to questions about strangers, " I am sorry: I know nobody of that name." and the same
with " !!" at its end, and prefer the first. Both are right; the second is one that the
model would never say. What the model says otherwise is made up: a city for somebody who
does not exist. Instructions for training and for measuring speak of different names.

    chosen, rejected   mean change of the log-probs of both, in nats, while training
    elsewhere          mean mass of all other responses, 1 - p(chosen) - p(rejected):
                       exact, no sampling
    right              share of sampled responses that refuse

All arms begin with the zoo's fine-tuned model and take equally many steps with the same
learning rate, which no arm was tuned for. Some change the loss: a larger beta; IPO's
finite margin; the NLL of the chosen response per token beside DPO (as in RPO and CPO),
and for comparison this NLL alone, which is SFT; DPO-Positive's penalty where the chosen
response falls below the reference. Two change the pairs, and curves show what becomes
of the others: "unlike pairs" compare a refusal with what the model said before
training, if that was not it; "pairs of its own" are two responses from before training,
ordered by a fair judge.

What this cannot say: how much displacement there is in data where only some pairs are
alike, or in large models; and the mendings are as strong as their weights, of which
only one was tried.

Source: Razin et al., arXiv:2410.08847 (likelihood displacement, and refusals that are
unlearned by preferring one over another); Pal et al., arXiv:2402.13228 (DPO-Positive);
Pang et al., arXiv:2404.19733 (DPO with NLL).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from torch import Tensor

from minillm.alignment import Ask, Judge, PreferConfig, dpo_loss, ipo_loss, prefer
from minillm.alignment.own_responses import (
    against_own,
    as_rows,
    ask_model,
    judged_pairs,
)
from minillm.alignment.preference_data import Row
from minillm.alignment.scored import Scored
from minillm.model import GPT
from minillm.school.preferring import Judged, Trial, begin
from minillm.school.studies import run_study
from minillm.world.instructions import Instruction, instructions
from minillm.world.lore import Lore
from minillm.world.preferences import Preference

QUESTION = (
    "Where does the mass go when DPO compares responses that are nearly the same?"
)
STEPS, B, LR, ASKED, EVERY = 48, 8, 1e-4, 128, 8
ARMS = {
    "DPO": {},
    "DPO, beta 1": {"beta": 1.0},
    "IPO": {"loss": "ipo"},
    "DPO + NLL": {"loss": "nll"},
    "NLL alone": {"loss": "alone"},
    "DPO-Positive": {"loss": "positive"},
    "DPO, unlike pairs": {"pairs": "unlike"},
    "DPO, pairs of its own": {"pairs": "own"},
}


def dpo(scored: Scored, beta: float) -> Tensor:
    """The loss to be mended."""
    return dpo_loss(*scored.sums, beta)


def with_nll(scored: Scored, beta: float) -> Tensor:
    """DPO, and the chosen response is learned as in SFT."""
    return dpo(scored, beta) - scored.policy_means[0]


def nll_alone(scored: Scored, beta: float) -> Tensor:
    """SFT: what the addition does by itself."""
    return -scored.policy_means[0]


def positive(scored: Scored, beta: float, weight: float = 5.0) -> Tensor:
    """DPO whose margin pays for a chosen response that falls below the reference."""
    chosen, rejected, ref_chosen, ref_rejected = scored.sums
    fallen = (ref_chosen - chosen).clamp(min=0)
    return dpo_loss(chosen - weight * fallen, rejected, ref_chosen, ref_rejected, beta)


def ipo(scored: Scored, beta: float) -> Tensor:
    """A margin of 1 / (2 beta) nats and no more."""
    return ipo_loss(*scored.sums, beta)


LOSSES = {
    "dpo": dpo,
    "ipo": ipo,
    "nll": with_nll,
    "alone": nll_alone,
    "positive": positive,
}


def strangers(lore: Lore, n: int, stream: str, held_out: bool) -> list[Instruction]:
    """n instructions about people who do not exist."""
    drawn = instructions(lore, 20 * n, stream, held_out)  # one in eight is
    return [*islice((each for each in drawn if each.topic == "stranger"), n)]


def alike(asked: Sequence[Instruction]) -> list[Judged]:
    """Refusals, chosen over the same with another end."""
    worse = [each.good.removesuffix(".") + " !!" for each in asked]
    return [
        (each, Preference(each.question, each.good, bad))
        for each, bad in zip(asked, worse, strict=True)
    ]


def training_rows(
    model: GPT, trial: Trial, asked: Sequence[Instruction], kind: str, seed: int
) -> list[Row]:
    """The pairs of an arm as tokens; what is sampled is sampled before training."""
    tokenizer, ask = trial.tokenizer, Ask(seed=seed)
    known = (model, tokenizer, asked)
    if kind == "own":
        return judged_pairs(*known, Judge(), ask, ask.dice())
    if kind == "unlike":
        said = as_rows(ask_model(*known, ask, ask.dice()))
        return against_own(tokenizer, asked, said)
    return [*trial.batches(alike(asked)).rows]


def run(seed: int, loss: str = "dpo", beta: float = 0.1, pairs: str = "alike") -> dict:
    """Train, and look at the pairs that are alike every so often."""
    model, trial = begin(seed)
    held_out = strangers(trial.lore, ASKED, "trial", held_out=True)
    trial = replace(trial, asked=held_out, pairs=alike(held_out))
    asked = strangers(trial.lore, STEPS * B, f"train {seed}", held_out=False)
    rows = training_rows(model, trial, asked, pairs, seed)
    batches = replace(trial.batches(alike(asked[:1]), seed, B), rows=rows)
    before, seen = trial.scores(model), []

    def look() -> dict[str, float]:
        scores = trial.scores(model)
        chosen, rejected = (scores - before).mean(0).tolist()
        elsewhere = 1 - scores.exp().sum(1).mean().item()
        seen.append([round(x, 4) for x in (chosen, rejected, elsewhere)])
        return {}

    said = trial.said(model)["right"]
    config = PreferConfig(STEPS, beta, LR)
    prefer(model, trial.ref, batches, config, LOSSES[loss], False, look, EVERY)
    look()
    curves = zip(
        ("chosen", "rejected", "elsewhere"), zip(*seen, strict=True), strict=True
    )
    steps = {"steps": [*range(0, STEPS + 1, EVERY)]}
    curves = {name: [*values] for name, values in curves}
    return steps | curves | {"right_before": round(said, 4)} | trial.measure(model)


if __name__ == "__main__":
    run_study(__file__, QUESTION, ARMS, seeds=(0, 1, 2), run=run)
