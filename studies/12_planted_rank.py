r"""A change whose rank is known, and LoRAs of smaller, equal and larger rank.

LoRA bets that the change has a low rank. Here it is known to: RANK, planted.

**A layer.** W + D is to be learned, where D has RANK singular values, from 4 down to 1,
and :math:`\|D\|^2 = 1`. If the layer is seen exactly, the best change of rank r is the
sum of D's first r directions (Eckart-Young), so

    gap             |change - D|^2, of which sum_{i > r} sigma_i^2 cannot be mended
    best            that sum

If it is seen through N examples with noise, the best fit of rank r is that of
reduced-rank regression: project what least squares says, D_ols, onto the r directions
in which D_ols X is largest. Its gap is ``best`` then, and every rank fits the noise with
r (in + out - r) numbers.

**A small GPT.** The teacher is the zoo's base model, and each of its matrices has been
given a random change of rank RANK and SIZE times its norm. The student is the base model
with a LoRA in all matrices, and learns from the teacher's logits for other documents.

    gap             KL(teacher || student), nats per token, in documents not learned
                    from, as a part of what it was before training

Both are trained by AdamW at every rate of RATES, so that the best rate can be compared
for alpha / r and alpha / sqrt(r) (rsLoRA), which are the same at rank 1. ``gaps`` are
in the order of the rates; ``gap`` is the smallest of them.

What this cannot say: which rank a task needs whose rank is not known, and what would
come of more steps: the GPT takes STEPS.

Source: Eckart & Young 1936; Izenman 1975 (reduced-rank regression), theorem 1.
"""

from collections.abc import Iterator
from functools import cache, partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from minillm.compression.distillation import kd_loss
from minillm.data.packed import Rows, pack
from minillm.finetuning.lora import LoRALinear, apply_lora
from minillm.finetuning.targets import select_linears
from minillm.model import GPT
from minillm.school import zoo
from minillm.school.recipes.base import Base
from minillm.school.studies import run_study

QUESTION = "What does LoRA's rank buy if the rank of the change is known?"
SEEDS, RANK, RANKS = (0, 1, 2), 4, (1, 2, 4, 8, 16, 32)
WIDTH, N, NOISE, FITS, ALPHA = 32, 128, 0.2, 1000, 8.0  # of the layer; its steps
SIZE, STEPS, B, T, DOCUMENTS, TEST = 0.5, 200, 8, 64, 6000, 600  # of the GPT
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SCALINGS = {"": False, ", rs": True}
ARMS = {
    f"{kind}, rank {r}{name}": {"kind": kind, "rank": r, "stabilized": stabilized}
    for kind in ("layer", "noisy layer", "GPT")
    for name, stabilized in SCALINGS.items()
    for r in RANKS
    if r > 1 or not stabilized
}


def layer_gaps(
    seed: int, rank: int, stabilized: bool, lr: float, examples: int
) -> tuple[float, float]:
    """What a trained LoRA leaves of the change, and what the best of its rank leaves.

    Without examples the layer is seen exactly: one input for each direction, no noise.
    """
    dice = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=dice)
    left, right = (torch.linalg.qr(normal(WIDTH, RANK))[0] for _ in range(2))
    D = left * torch.arange(float(RANK), 0, -1) @ right.T
    D /= D.norm()
    X, noise = torch.eye(WIDTH), 0.0
    if examples:
        X, noise = normal(examples, WIDTH), NOISE * normal(examples, WIDTH)
    Y = X @ D.T + noise
    ols = torch.linalg.lstsq(X, Y).solution.T
    U = torch.linalg.svd(ols @ X.T)[0][:, :rank]
    torch.manual_seed(seed)
    base = nn.Linear(WIDTH, WIDTH, bias=False)
    layer = LoRALinear(base, rank, ALPHA, rank_stabilized=stabilized)
    for _ in descend(layer, lr, FITS):
        (layer.change(X) - Y).square().sum(1).mean().backward()
    changes = layer.delta().detach(), U @ U.T @ ols
    return tuple((change - D).square().sum().item() for change in changes)


def descend(model: nn.Module, lr: float, steps: int) -> Iterator[int]:
    """Steps of AdamW at a rate that falls to 0; the caller leaves the gradients."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0, fused=True)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        optimizer.zero_grad()
        yield step
        optimizer.step()
        falling.step()


@cache
def rows() -> tuple[Int[Tensor, "R T"], Int[Tensor, "S T"]]:
    """Documents to learn from and to be measured with."""
    found = zoo.load(Base(), progress=False)  # all seeds share world and tokenizer
    encode, eot = found.tokenizer.encode_batch, found.tokenizer.eot
    learn, test = (
        [document.text for document in found.world.documents(n, f"planted/{n}")]
        for n in (DOCUMENTS, TEST)
    )
    return pack(encode(learn), eot, T), pack(encode(test), eot, T)


def planted(seed: int) -> GPT:
    """The base model, changed by RANK in each matrix."""
    model = zoo.load(Base(), seed=seed, progress=False).model.requires_grad_(False)
    dice = torch.Generator().manual_seed(seed)
    for layer in select_linears(model, "all").values():
        M, N = layer.weight.shape
        change = torch.randn(M, RANK, generator=dice) @ torch.randn(
            RANK, N, generator=dice
        )
        layer.weight += SIZE * layer.weight.norm() / change.norm() * change
    return model


def gpt_gap(seed: int, rank: int, stabilized: bool, lr: float) -> float:
    """What a trained LoRA leaves of the distance to the teacher."""
    teacher = planted(seed)
    student = zoo.load(Base(), seed=seed, progress=False).model
    learn, test = rows()
    with torch.no_grad():
        before = kd_loss(student(test), teacher(test)).item()
    torch.manual_seed(seed)
    apply_lora(student, rank, ALPHA, "all", rank_stabilized=stabilized)
    batches = Rows(learn, B, seed)
    for step in descend(student, lr, STEPS):
        tokens = batches[step].tokens
        kd_loss(student(tokens), teacher(tokens)).backward()
    with torch.no_grad():
        return kd_loss(student(test), teacher(test)).item() / before


def run(seed: int, kind: str, rank: int, stabilized: bool) -> dict:
    """Train at every rate; what is left of the change?"""
    found = {}
    if kind == "GPT":
        gaps = [gpt_gap(seed, rank, stabilized, lr) for lr in RATES]
    else:
        n = N if kind == "noisy layer" else 0
        each = [layer_gaps(seed, rank, stabilized, lr, n) for lr in RATES]
        gaps, best = zip(*each, strict=True)
        found["best"] = round(best[0], 5)
    least = min(range(len(RATES)), key=gaps.__getitem__)
    found |= {"gap": round(gaps[least], 5), "rate": RATES[least]}
    return found | {"gaps": [round(gap, 5) for gap in gaps]}


if __name__ == "__main__":
    for seed in SEEDS:
        zoo.load(Base(), seed=seed, progress=False)  # or the first run would pay for it
    rows()
    run_study(__file__, QUESTION, ARMS, SEEDS, run)
