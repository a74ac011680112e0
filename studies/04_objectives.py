"""What do four objectives teach with equal compute? Facts known, chosen among all.

Next-token prediction, masked tokens, span corruption and replaced-token detection read
rows of a small TinyWorld (64 people, biographies and dialogues) for the same number of
floating-point operations. A generator counts; positions that do not reach the head do
not. All have the same trunk: two layers, 64 wide. In the world of 400 people only the
first gets off the ground with so little compute, and nothing could be compared.

Their losses cannot be compared: each is the surprise at something else. What can be
compared is what they know afterwards. Of all values that a fact of a person could have,
as many as are one token, which does the model prefer in "Question: where does X
live?\\nAnswer: ..."? Each scores by its own means: the causal model by the next token,
the masked one at a gap, span corruption after a sentinel, the detector by which value
looks least replaced. Chance is one in the number of values, and the same for all.

Two arms score only 15 % of the positions that they could: what a target is worth can
then be told from what seeing both sides is worth.

What this cannot say: which objective is best at another size, with longer training, or
for text that has to be written. Learning rates are those of the causal model for all.
"""

from collections.abc import Callable
from functools import cache
from random import Random
from statistics import fmean

import torch
from torch import Tensor

from minillm.data.packed import Rows
from minillm.model import GPT, GPTConfig
from minillm.school.studies import run_study
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import TrainConfig, minimise
from minillm.training.electra import Electra
from minillm.training.fillin import row_flops, scored_loss, span_rows
from minillm.training.losses import IGNORE, shift_targets
from minillm.training.objectives import mask_tokens
from minillm.world import WorldConfig
from minillm.world.lore import PERSON
from minillm.world.questions import fact_question

QUESTION = "What do four objectives teach with equal compute?"
WORLD = WorldConfig(people=64, cities=24, mixture=(0.5, 0.5, 0, 0, 0, 0, 0, 0))
B, T, V, RATE, SPANS = 16, 64, 800, 0.15, 3
STEPS = 800  # of the causal model; the others get what the same operations buy
SHORT = 56  # tokens of a row that span corruption turns into about T
ARMS = {
    "causal": {"kind": "causal"},
    "causal, 15% scored": {"kind": "causal", "scored": RATE},
    "causal, half the compute": {"kind": "causal", "steps": STEPS // 2},
    "masked": {"kind": "masked"},
    "spans": {"kind": "spans"},
    "replaced": {"kind": "replaced"},
    "replaced, 15% scored": {"kind": "replaced", "scored": RATE},
}


@cache
def text() -> TinyText:
    """The same for all runs."""
    return tiny_text(WORLD, documents=100_000, test=300, vocab_size=V, T=T)


@cache
def facts() -> dict[str, tuple[list[int], list[tuple[str, int]]]]:
    """For each relation: the tokens of its values, and (prompt, place of the truth)."""
    known, encode = text(), text().tokenizer.encode
    found = {}
    for relation in known.world.lore.of(PERSON):
        ids = {v: encode(" " + v) for v in relation.values.texts}
        single = [v for v, tokens in ids.items() if len(tokens) == 1]
        asked = [
            fact_question(known.world.lore, p, relation.name)
            for p in known.world.lore.people
        ]
        true = [(q.prompt, single.index(q.answer)) for q in asked if q.answer in single]
        found[relation.name] = ([ids[v][0] for v in single], true)
    return found


def build(kind: str) -> torch.nn.Module:
    """The model of an arm: always the same trunk."""
    size = V + SPANS + 2  # a mask and sentinels beside the text
    causal = kind in ("causal", "spans")
    trunk = GPTConfig(size, 2, 4, n_embd=64, context=T + 16, causal=causal)
    if kind != "replaced":
        return GPT(trunk)
    return Electra(
        GPTConfig(size, 2, 2, n_embd=32, context=T + 16, causal=False), trunk
    )


def operations(kind: str, scored: float) -> float:
    """Floating-point operations of training on one row."""
    model = build(kind)
    if kind == "replaced":
        small, large = model.generator.config, model.discriminator.config
        return row_flops(small, T, RATE * T) + row_flops(large, T, scored * T, head=1)
    if kind == "spans":
        row, mask = span_rows(torch.zeros(1, SHORT).long(), sentinels(), Random(0))
        return row_flops(model.config, row.shape[1], int(mask.sum()))
    return row_flops(model.config, T, T * (RATE if kind == "masked" else scored))


def sentinels() -> list[int]:
    """Ids beside the vocabulary; the one before them is the mask."""
    return list(range(V + 1, V + SPANS + 2))


def objective(kind: str, scored: float, model, seed: int) -> Callable[[int], Tensor]:
    """What ``minimise`` minimises: the loss of a step."""
    rows = Rows(text().rows, B, seed)
    dice, spans = torch.Generator().manual_seed(seed), Random(seed)

    def loss(step: int) -> Tensor:
        tokens = rows[step].tokens
        if kind == "causal":
            targets = shift_targets(tokens)
            left_out = torch.rand(targets.shape, generator=dice) >= scored
            return scored_loss(model, tokens, targets.masked_fill(left_out, IGNORE))
        if kind == "spans":
            given, mask = span_rows(tokens[:, :SHORT], sentinels(), spans)
            return scored_loss(model, given, shift_targets(given, mask))
        inputs, targets = mask_tokens(tokens, V, V, RATE, generator=dice)
        if kind == "masked":
            return scored_loss(model, inputs, targets)
        return model.loss(tokens, inputs, targets, only_gaps=scored < 1)

    return loss


@torch.no_grad()
def preferences(kind: str, model, prompts: list[str], values: list[int]) -> Tensor:
    """How much a model prefers each value as the answer to each prompt."""
    tokenizer, found = text().tokenizer, []
    end = [*tokenizer.encode("."), tokenizer.eot]
    for prompt in prompts:
        ids = [tokenizer.eot, *tokenizer.encode(prompt)]
        mask, sentinel = V, sentinels()[:1]
        if kind == "causal":
            found.append(model(torch.tensor([ids]))[0, -1, values])
        elif kind == "spans":
            row = ids + sentinel + end + sentinel
            found.append(model(torch.tensor([row]))[0, -1, values])
        elif kind == "masked":
            found.append(model(torch.tensor([[*ids, mask, *end]]))[0, len(ids), values])
        else:
            rows = torch.tensor([[*ids, value, *end] for value in values])
            found.append(-model(rows)[:, len(ids)])
    return torch.stack(found)


def choosing(kind: str, model) -> float:
    """The part of the facts that the model prefers to all else."""
    right = []
    for values, asked in facts().values():
        prompts, truth = zip(*asked, strict=True)
        best = preferences(kind, model, prompts, values).argmax(-1).tolist()
        right += [a == b for a, b in zip(best, truth, strict=True)]
    return fmean(right)


def chance() -> float:
    """What choosing blindly gives."""
    return fmean(1 / len(values) for values, asked in facts().values() for _ in asked)


def targets_per_row(kind: str, scored: float) -> float:
    """How many positions of a row teach something."""
    if kind == "spans":
        _, mask = span_rows(torch.zeros(1, SHORT).long(), sentinels(), Random(0))
        return float(mask.sum())
    return {"causal": (T - 1) * scored, "masked": RATE * T, "replaced": T * scored}[
        kind
    ]


def run(seed: int, kind: str, scored: float = 1.0, steps: int = STEPS) -> dict:
    """Train one model and ask what it knows."""
    torch.manual_seed(seed)
    model = build(kind)
    budget = steps * operations("causal", 1.0)
    steps = round(budget / operations(kind, scored))
    config = TrainConfig(steps, lr=1e-2, matrix_lr=1e-2, weight_decay=0.0)
    losses = minimise(model, objective(kind, scored, model, seed), config)
    model.eval()
    measured = {
        "steps": steps,
        "teraflops": round(B * steps * operations(kind, scored) / 1e12, 3),
        "targets a row": round(targets_per_row(kind, scored), 1),
        "chosen": round(choosing(kind, model), 4),
        "chance": round(chance(), 4),
        "last loss": round(fmean(losses[-50:]), 4),
    }
    if kind == "causal":  # the only one whose floor is known
        measured["excess"] = round(text().test.excess(model).total, 4)
    return measured


if __name__ == "__main__":
    text()  # made here, or the first run would pay for it
    run_study(__file__, QUESTION, ARMS, seeds=(0, 1, 2), run=run)
