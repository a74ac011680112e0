r"""A change whose rank is known, and LoRAs of smaller, equal and larger rank.

LoRA bets that the change has a low rank. Here it is known to: RANK, planted.

**A layer.** W + D is to be learned, where D has RANK singular values as 4 : 3 : 2 : 1,
and :math:`\|D\|^2 = 1`. If the layer is seen exactly, the best change of rank r is the
sum of D's first r directions (Eckart and Young), and of the gap

.. math:: \|change - D\|^2 \ge \sum_{i > r} \sigma_i^2

If it is seen through N examples with noise, the best fit of rank r is that of
reduced-rank regression: what least squares says, projected onto the r directions in
which its outputs are largest. It fits the noise with r (in + out - r) numbers.

    gap, best       of the trained LoRA, and of the best fit in closed form

**A small GPT.** The teacher is the zoo's base model with a random change of rank RANK
in one matrix, as large as the matrix is. The student is the base model with a LoRA in
this matrix, and learns from the teacher's logits for other documents.

    gap             KL(teacher || student), nats per token, in documents not learned
                    from, as a part of what it was before training

It is trained at every rate of RATES, so that the best can be compared for alpha / r and
alpha / sqrt(r) (rsLoRA), which are the same at rank 1. ``gaps`` are in their order,
``gap`` is the smallest and ``rate`` where. All train by AdamW, at a falling rate.

What this cannot say: which rank a task needs whose rank nobody has planted, how it goes
if all matrices change (in as many steps none of these ranks then closes the gap, in
single runs), and whether other ratios of alpha are better.

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
from minillm.model import GPT
from minillm.school import zoo
from minillm.school.recipes.base import Base
from minillm.school.studies import run_study

QUESTION = "What does LoRA's rank buy if the rank of the change is known?"
SEEDS, RANK, RANKS, ALPHA = (0, 1, 2), 4, (1, 2, 4, 8, 16, 32), 8.0
WIDTH, N, NOISE, FITS, RATE = 32, 128, 0.2, 1000, 1e-2  # of the layer; its steps, rate
WHERE, STEPS, B, T = "layers.1.mlp.down_proj", 200, 4, 64  # of the GPT; its rows
DOCUMENTS, TEST, RATES = 6000, 600, (1e-2, 3e-2, 1e-1, 3e-1)
ARMS = {
    f"{kind}, rank {rank}": {"kind": kind, "rank": rank}
    for kind in ("layer", "noisy layer", "GPT")
    for rank in RANKS
}
RS = {f"GPT, rs, rank {r}": {"kind": "GPT", "rank": r, "rs": True} for r in (4, 8, 32)}


def layer_gaps(seed: int, rank: int, examples: int) -> list[float]:
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
    layer = LoRALinear(base, rank, ALPHA)
    for _ in descend(layer, RATE, FITS):
        (layer.change(X) - Y).square().sum(1).mean().backward()
    changes = layer.delta().detach(), U @ U.T @ ols
    return [(change - D).square().sum().item() for change in changes]


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
    """The base model with the change."""
    model = zoo.load(Base(), seed=seed, progress=False).model.requires_grad_(False)
    weight = model.get_submodule(WHERE).weight
    dice, (M, N) = torch.Generator().manual_seed(seed), weight.shape
    normal = partial(torch.randn, generator=dice)
    change = normal(M, RANK) @ normal(RANK, N)
    weight += weight.norm() / change.norm() * change
    return model


def gpt_gap(seed: int, rank: int, rs: bool, lr: float) -> float:
    """What a trained LoRA leaves of the distance to the teacher."""
    teacher = planted(seed)
    student = zoo.load(Base(), seed=seed, progress=False).model
    learn, test = rows()
    with torch.no_grad():
        before = kd_loss(student(test), teacher(test)).item()
    torch.manual_seed(seed)
    apply_lora(student, rank, ALPHA, WHERE, rank_stabilized=rs)
    batches = Rows(learn, B, seed)
    for step in descend(student, lr, STEPS):
        tokens = batches[step].tokens
        kd_loss(student(tokens), teacher(tokens)).backward()
    with torch.no_grad():
        return kd_loss(student(test), teacher(test)).item() / before


def run(seed: int, kind: str, rank: int, rs: bool = False) -> dict:
    """Train; what is left of the change?"""
    if kind != "GPT":
        gaps = layer_gaps(seed, rank, N if kind == "noisy layer" else 0)
        return dict(zip(("gap", "best"), (round(gap, 6) for gap in gaps), strict=True))
    gaps = [round(gpt_gap(seed, rank, rs, lr), 6) for lr in RATES]
    return {"gap": min(gaps), "rate": RATES[gaps.index(min(gaps))], "gaps": gaps}


if __name__ == "__main__":
    for seed in SEEDS:
        zoo.load(Base(), seed=seed, progress=False)  # or the first run would pay for it
    rows()
    run_study(__file__, QUESTION, ARMS | RS, SEEDS, run)
