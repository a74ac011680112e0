"""Quality against the bits that are really stored, for every quantizer of the room.

The linear layers of the zoo's base model are held in another format; embedding (which
is the head), norms and activations stay floats, but for the two arms that multiply
integers. Quantizers that look at inputs read CALIBRATED documents; QAT trains for
STEPS steps on the grid of RTN, and "float32, trained on" the same without it.

    bits            held for each weight of the blocks, counted from the tensors, with
                    scales, zero-points, permutations and norms
    bytes           of the whole model, embedding included
    excess          nats per token over the floor, in documents not read before
    facts           share recalled, of FEW people of each group of ranks

What this cannot say: which format is best for a model of billions. A model this small
need not have the outlier features of large ones; its rows are 64 and 192 weights long,
so that a group of 64 is a row or a third of one. QAT has read more than the others,
which is what "trained on" is for. The kernels of these formats are not timed; here all
make floats again before they multiply, but for the two.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from jaxtyping import Int
from torch import Tensor

from minillm.compression.awq import awq
from minillm.compression.codebooks import FP4_LEVELS
from minillm.compression.floats import round_floats
from minillm.compression.gptq import gptq
from minillm.compression.int8 import llm_int8_linear, quantize_int8
from minillm.compression.kquants import quantize_gguf
from minillm.compression.linear import HeldLinear, held_bytes
from minillm.compression.nf4 import quantize_nf4
from minillm.compression.qat import apply_qat, finish_qat
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.compression.whole import quantize_model, stored_bits
from minillm.data.packed import Rows, pack
from minillm.evaluation.asking import accuracy, ask
from minillm.model import GPT
from minillm.school import zoo
from minillm.school.recipes.base import Base
from minillm.school.studies import run_study
from minillm.school.tiny_looks import by_rank
from minillm.training import TrainConfig, Trainer

QUESTION = "What does quality cost in bits that are really stored?"
SEEDS, DOCUMENTS, FEW, CALIBRATED, T = (0, 1, 2), 500, 20, 500, 128
STEPS, B, LR, TRAINED = 100, 16, 1e-3, 12_000  # of QAT; documents
FLOATS = {n: getattr(torch, n) for n in ("float16", "bfloat16", "float8_e4m3fn")}
BITS, GGUF = (4, 3, 2), ("Q8_0", "Q6_K", "Q4_K", "Q4_0")
ARMS = {
    "float32": {},
    "float32, trained on": {"steps": STEPS},
    **{name: {"format": "floats", "dtype": name} for name in FLOATS},
    "int8": {"format": "int8"},
    "int8, inputs too": {"format": "int8", "threshold": 1e9},
    "LLM.int8": {"format": "int8", "threshold": 6.0},
    **{kind: {"format": "gguf", "kind": kind} for kind in GGUF},
    "NF4": {"format": "nf4"},
    "NF4, nested": {"format": "nf4", "double_quant": True},
    "FP4": {"format": "fp4"},
    **{f"RTN {b}": {"format": "rtn", "bits": b} for b in (8, *BITS)},
    **{f"RTN {b}, rows": {"format": "rtn", "bits": b, "group": None} for b in BITS},
    **{f"GPTQ {b}": {"format": "gptq", "bits": b} for b in BITS},
    **{f"GPTQ {b}, rows": {"format": "gptq", "bits": b, "group": None} for b in BITS},
    **{
        f"GPTQ {b}, act-order": {"format": "gptq", "bits": b, "act_order": True}
        for b in BITS
    },
    **{f"AWQ {b}": {"format": "awq", "bits": b} for b in BITS},
    **{f"QAT {b}": {"format": "rtn", "bits": b, "steps": STEPS} for b in (3, 2)},
}


def quantizer(
    format: str, bits: int = 4, group: int | None = 64, **settings
) -> Callable[..., object]:
    """(weight, inputs) -> what is held."""
    grid = Grid(bits, group)
    named = {
        "floats": lambda w, x, dtype=None: round_floats(w, FLOATS[dtype]),
        "int8": lambda w, x: quantize_int8(w),
        "gguf": lambda w, x, kind=None: quantize_gguf(w, kind),
        "nf4": lambda w, x, **options: quantize_nf4(w, **options),
        "fp4": lambda w, x: quantize_nf4(w, levels=FP4_LEVELS),
        "rtn": lambda w, x: quantize_rtn(w, grid),
        "gptq": lambda w, x, **options: gptq(w, x.hessian, grid, **options),
        "awq": lambda w, x: awq(w, x, grid),
    }
    return partial(named[format], **settings)


@cache
def rows(n: int, stream: str) -> Int[Tensor, "R T"]:
    """Documents to calibrate or to train with; all seeds share world and tokenizer."""
    found = zoo.load(Base(), progress=False)
    texts = [document.text for document in found.world.documents(n, stream)]
    return pack(found.tokenizer.encode_batch(texts), found.tokenizer.eot, T)


def train_on(model: GPT, steps: int, grid: Grid | None, seed: int) -> None:
    """A short fine-tuning on documents, with rounded weights if there is a grid."""
    batches = Rows(rows(TRAINED, "bits/train"), B, seed)
    config = TrainConfig(steps, "adamw", LR, weight_decay=0.0, warmup=steps // 10)
    if grid:
        apply_qat(model, grid)
    Trainer(model.train(), batches, config, progress=False).fit()
    if grid:
        finish_qat(model)
    model.eval()


def multiply_integers(model: GPT, threshold: float) -> None:
    """Let layers in int8 round their inputs, too, but for features beyond a size."""

    def forward(layer: HeldLinear, x: Tensor) -> Tensor:
        y = llm_int8_linear(x.flatten(0, -2), layer.held, threshold)
        return y.view(*x.shape[:-1], -1)

    for layer in model.modules():
        if isinstance(layer, HeldLinear):
            layer.forward = partial(forward, layer)


def run(
    seed: int,
    format: str = "",
    steps: int = 0,
    threshold: float | None = None,
    **settings,
) -> dict:
    """Hold a model in a format, and measure."""
    found = zoo.load(Base(), seed=seed, progress=False)
    model, known = found.model, found.known(DOCUMENTS)
    if steps:
        grid = Grid(settings["bits"]) if format else None
        train_on(model, steps, grid, seed)
    if format:
        batches = rows(CALIBRATED, "bits/calibration").split(B)
        quantize_model(model, quantizer(format, **settings), batches)
    if threshold:
        multiply_integers(model, threshold)
    asked = [q for group in by_rank(found.world.lore, FEW).values() for q in group]
    excess = known.excess(model)
    measured = {
        "bits": stored_bits(model.layers).bits_per_weight,
        "bytes": held_bytes(model),
        "excess": excess.total,
        "remembered": excess.parts["remembered"],
        "facts": accuracy(ask(model, found.tokenizer, asked, 12)),
    }
    return {name: round(value, 5) for name, value in measured.items()}


if __name__ == "__main__":
    for seed in SEEDS:
        zoo.load(Base(), seed=seed, progress=False)  # or the first run would pay for it
    rows(CALIBRATED, "bits/calibration"), rows(TRAINED, "bits/train")
    run_study(__file__, QUESTION, ARMS, SEEDS, run)
