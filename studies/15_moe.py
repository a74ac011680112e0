"""What do experts add at equal operations, what keeps them at work, who does what?

A small model (two layers, 32 wide) reads a TinyWorld of 128 people. Beside the dense
model stand models with eight experts in place of each feed-forward layer, each as wide
as the dense one, of which every token asks one (Switch). So a token costs the same
operations, but for the router's 0.8 %, and there are 3.2 times the parameters.

- **Dense against experts**: excess over the floor, and facts recalled by rank, after
  500 steps and after three times as many. An expert sees an eighth of the tokens, so it
  learns more slowly at first.
- **Collapse and cure**: the entropy of the load over training, without balancing, with
  the balancing loss (0.01), and with a bias that is nudged (0.002 a step).
- **Experts against domains**: the mutual information of the expert that a token of an
  unseen document is sent to and the document's domain, in nats; its chance level, with
  domains dealt anew to whole documents (tokens of one document are no independent
  draws); and what the token alone would give: experts drawn from p(expert | token).

What it cannot say: what happens with more experts, at another width, or where memory is
really short: after the longer training both models know nearly all facts. Learning
rates are those of the dense model for all; a router is a matrix and is trained by Muon,
too. Nothing collapses onto a single expert here, balanced or not.
"""

import math
from functools import cache
from statistics import fmean

import numpy as np
import torch

from minillm.data.packed import Rows
from minillm.evaluation.asking import accuracy, ask
from minillm.model import (
    GPT,
    GPTConfig,
    MoEConfig,
    count_moe_parameters,
    count_parameters,
    moe_layers,
    nudge_biases,
    with_experts,
)
from minillm.model.config import flops_per_token
from minillm.school.studies import run_study
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import TrainConfig, Trainer
from minillm.world import WorldConfig
from minillm.world.questions import fact_questions

QUESTION = "What do experts add at equal operations, and what keeps them at work?"
STEPS, B, C, E, EVERY = 500, 16, 32, 8, 10
WORLD = WorldConfig(people=128, cities=24)
RANKS = ((1, 10), (11, 30), (31, 64), (65, 128))
ARMS = {
    "dense": {"experts": 0},
    "experts, no balancing": {},
    "experts, balancing loss": {"balance": 0.01},
    "experts, nudged bias": {"nudge": 0.002},
    "dense, three times as long": {"experts": 0, "times": 3},
    "experts, three times as long": {"balance": 0.01, "times": 3},
}


@cache
def text(times: int) -> TinyText:
    """The same for all runs of a length; what they are measured with, for all."""
    return tiny_text(WORLD, documents=60_000 * times, test=600)


def entropy(load: torch.Tensor) -> float:
    """Of the load, in nats; ln E if it is even."""
    return torch.special.entr(load).sum().item()


def information(table: np.ndarray) -> float:
    """Mutual information, in nats, of the two things that a table counts."""
    p = table / table.sum()
    independent = p.sum(0) * p.sum(1, keepdims=True)
    return float((p[p > 0] * np.log(p[p > 0] / independent[p > 0])).sum())


@torch.no_grad()
def asked(model: GPT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Domain of each test document; its (layer, expert) counts; (layer, token, expert).

    A domain is told by how its documents begin.
    """
    known, V, layers = text(1), text(1).tokenizer.vocab_size, moe_layers(model)
    heads = [document.choices[0] for document in known.test.documents]
    domains = np.unique(heads, return_inverse=True)[1]
    by_document = np.zeros((len(heads), len(layers), E))
    by_token = np.zeros((len(layers), V, E))
    for d, account in enumerate(known.test.accounts):
        ids = torch.tensor([[known.test.eot, *(token.token for token in account)]])
        model(ids)
        for i, layer in enumerate(layers):
            routing = layer.routing
            by_document[d, i] = routing.counts.numpy()
            np.add.at(by_token[i], (ids[0][routing.tokens], routing.experts), 1)
    return domains, by_document, by_token


def who_does_what(model: GPT) -> dict:
    """Mutual information of experts and domains, mean of the layers."""
    domains, by_document, by_token = asked(model)
    dice, dealt = np.random.default_rng(0), np.eye(domains.max() + 1)[domains]
    ids = [[token.token for token in a] for a in text(1).test.accounts]
    tokens = np.zeros((len(ids), by_token.shape[1]))  # of each document
    for d, account in enumerate(ids):
        np.add.at(tokens[d], [text(1).test.eot, *account], 1)
    found = {"domain": [], "domain, by chance": [], "domain, by token": [], "most": []}
    for i in range(by_document.shape[1]):
        counts = by_document[:, i]
        found["domain"].append(information(dealt.T @ counts))
        shuffled = [
            information(dealt[dice.permutation(len(dealt))].T @ counts)
            for _ in range(200)
        ]
        found["domain, by chance"].append(float(np.mean(shuffled)))
        found["most"].append(max(shuffled))
        given = by_token[i] / by_token[i].sum(1, keepdims=True).clip(min=1)
        found["domain, by token"].append(information(dealt.T @ tokens @ given))
    share = dealt.mean(0)
    found["domains' entropy"] = [float(-(share * np.log(share)).sum())]
    return {name: round(float(np.mean(v)), 4) for name, v in found.items()}


def run(seed: int, experts: int = E, balance=0.0, nudge=0.0, times: int = 1) -> dict:
    """Train one model; ask it for all facts, and its experts for what they do."""
    known = text(times)
    torch.manual_seed(seed)
    T, V = known.rows.shape[1], known.tokenizer.vocab_size
    config = GPTConfig(V, n_layer=2, n_head=2, n_embd=C, context=T)
    model, loads, counts = GPT(config), [], {"total": count_parameters(config)["total"]}
    moe = MoEConfig(E, k=1, renormalise=False, balance=balance)
    if experts:
        counts = count_moe_parameters(config, moe)
        with_experts(model, moe)

    def on_step(trainer: Trainer) -> None:
        layers = moe_layers(model)
        if nudge:
            nudge_biases(model, nudge)
        if layers and trainer.step % EVERY == 0:
            loads.append(fmean(entropy(layer.routing.load) for layer in layers))

    plan = TrainConfig(times * STEPS, lr=1e-2, matrix_lr=1e-2, weight_decay=0.0)
    rows = Rows(known.rows, B, seed)
    Trainer(model, rows, plan, on_step=on_step, progress=False).fit()
    model.eval()
    answers = ask(model, known.tokenizer, list(fact_questions(known.world.lore)), 16)
    by_rank = {
        f"{low}-{high}": [a for a in answers if low <= a.question.rank <= high]
        for low, high in RANKS
    }
    excess = known.test.excess(model)
    routers = config.n_layer * 2 * C * E if experts else 0
    measured = {
        "parameters": counts["total"],
        "operations": round(flops_per_token(config, T, training=False) + routers),
        "excess": round(excess.total, 5),
        "remembered": round(excess.parts["remembered"], 5),
        "recall": round(accuracy(answers), 4),
        "recall by rank": {r: round(accuracy(a), 4) for r, a in by_rank.items()},
    }
    if not experts:
        return measured
    measured |= {"load entropy": [round(x, 4) for x in loads]}
    measured |= {"least": round(min(loads), 4), "at last": round(loads[-1], 4)}
    return measured | {"even": round(math.log(E), 4), "nats": who_does_what(model)}


if __name__ == "__main__":
    _ = text(1), text(3)  # made here, or the first runs would pay for them
    run_study(__file__, QUESTION, ARMS, seeds=(0, 1, 2), run=run)
