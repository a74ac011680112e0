"""AdamW, tuned fairly, and Muon: how close to the floor do equal tokens bring them?

The usual comparison of optimizers is of losses, and of one well-tuned newcomer with a
default of the other. Here both get a grid of learning rates of the same fineness, every
point of it three seeds, and the answer is in nats above the floor.

All else is equal: the model, the text, its order for each seed, warm-up, decay,
clipping and weight decay. Muon is for matrices; the embedding table and the norms are
AdamW's in both, so Muon has a second learning rate. It is the same in all its runs.
"""

from functools import cache

import torch

from minillm.data.packed import Rows
from minillm.model import GPT, GPTConfig
from minillm.school.studies import run_study
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import TrainConfig, Trainer

QUESTION = "How close to the floor do AdamW and Muon come with equal tokens?"
STEPS, B = 1000, 16

ADAMW = {
    f"AdamW {lr:g}": {"optimizer": "adamw", "lr": lr}
    for lr in (2.5e-3, 5e-3, 1e-2, 2e-2)
}
MUON = {
    f"Muon {rate:g}": {"optimizer": "muon", "lr": 1e-2, "matrix_lr": rate}
    for rate in (2.5e-3, 5e-3, 1e-2, 2e-2)
}


@cache
def text() -> TinyText:
    """The same for all runs."""
    return tiny_text()


def run(seed: int, **settings) -> dict:
    """Train one model; what remains above the floor, in nats per token?"""
    known = text()
    torch.manual_seed(seed)
    T, V = known.rows.shape[1], known.tokenizer.vocab_size
    model = GPT(GPTConfig(V, n_layer=2, n_head=4, n_embd=64, context=T))
    config = TrainConfig(STEPS, weight_decay=0.0, **settings)
    Trainer(model, Rows(known.rows, B, seed), config, progress=False).fit()
    excess = known.test.excess(model)
    measured = {"excess": excess.total, "without facts": excess.without_facts}
    rounded = {name: round(nats, 5) for name, nats in (measured | excess.parts).items()}
    return rounded | {"floor": round(excess.floor, 5), "tokens": STEPS * B * T}


if __name__ == "__main__":
    text()  # made here, or the first run would pay for it
    run_study(__file__, QUESTION, ADAMW | MUON, seeds=(0, 1, 2), run=run)
