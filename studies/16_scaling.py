"""Does a fitted scaling law find the entropy, where it is known?

Of real text nobody knows E, the loss that no model gets below. Here everybody does. The
world is bare: 4,096 facts, ``subject subject value``, of which the k-th is stated with
a frequency of 1 / k^1.5, as the names of TinyWorld are. Subjects are pairs of words and
values are drawn once, so nothing but memory helps, and E is the entropy of Zipf's law.
Each run reads its facts once, and its loss is no sample: it is the mean over all facts.
N counts parameters without the embedding, D the tokens read.

Rule, written down before the sweep, after four short runs that showed what it costs: a
point (N, D) is limited by optimisation, and left out of the fit, if in the mean of its
seeds more than half of its excess over E lies in the 64 most frequent facts. Even the
shortest run states each of them some 77 times, and the smallest model has room for
them: neither size nor data explains such an excess. The rule left nothing out.

What this cannot say is that the law is right. In per cent the fitted E is near, but it
is nearly as far below the truth as the best run is above it, so as an extrapolation it
is poor. No single point decides it (the jackknife), and yet runs drawn anew agree on
values that the truth is not among: such an interval knows of luck, and of no wrong
form. And the form is wrong: more data give the two smallest models more nats than the
largest, where a sum gives all the same (a product fits worse). Nor are the exponents
those of a memory that holds the N most frequent facts and of facts that D tokens never
state: s - 1 = 0.5 and (s - 1) / s = 0.33.
"""

import math
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from minillm.model import GPT, GPTConfig, count_parameters
from minillm.school.studies import run_study
from minillm.training import TrainConfig, minimise, next_token_loss
from minillm.world.config import zipf_weights

QUESTION = "Does a fitted scaling law find the entropy, where it is known?"
WORDS, VALUES, B = 64, 64, 256
P = zipf_weights(WORDS**2, 1.5)
ENTROPY = -math.fsum(p * math.log(p) for p in P)  # nats a fact; it has three tokens
WIDTHS, STEPS, HEAD = (8, 14, 24, 40, 64), (400, 800, 1600, 3200), 64
GRID = {
    f"{C} wide, {steps} steps": {"C": C, "steps": steps}
    for C in WIDTHS
    for steps in STEPS
}


@cache
def facts() -> Int[Tensor, "K 4"]:
    """All facts by rank, each behind a token that begins it; the same for all runs."""
    truth = torch.Generator().manual_seed(0)
    pair = torch.randperm(WORDS**2, generator=truth)
    value = torch.randint(VALUES, (WORDS**2,), generator=truth)
    words = (0 * pair, 1 + pair // WORDS, 1 + WORDS + pair % WORDS)
    return torch.stack([*words, 1 + 2 * WORDS + value], 1)


def run(seed: int, C: int, steps: int) -> dict:
    """Read ``steps`` batches of facts once; what does a fact then cost, in nats?"""
    torch.manual_seed(seed)
    V, chosen = 1 + 2 * WORDS + VALUES, torch.tensor(P).multinomial(steps * B, True)
    model = GPT(GPTConfig(V, 1, 1, n_embd=C, n_hidden=4 * C, context=4))

    def loss(step: int) -> Tensor:
        tokens = facts()[chosen[step * B : (step + 1) * B]]
        return next_token_loss(model(tokens), tokens)

    config = TrainConfig(steps, lr=1e-2, matrix_lr=2e-2, weight_decay=0.0)
    minimise(model, loss, config)
    with torch.no_grad():
        logprobs = model(facts()[:, :-1]).double().log_softmax(-1)
    nats = -logprobs.gather(2, facts()[:, 1:, None]).sum((1, 2))
    p = torch.tensor(P, dtype=torch.float64)
    excess = p * (nats + p.log())
    return {
        "N": count_parameters(model.config)["non_embedding"],
        "D": 4 * B * steps,
        "loss": round((p @ nats).item(), 6),
        "head": round((excess[:HEAD].sum() / excess.sum()).item(), 4),
    }


if __name__ == "__main__":
    run_study(__file__, QUESTION, GRID, seeds=(0, 1, 2), run=run)
