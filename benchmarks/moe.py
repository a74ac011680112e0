"""Eight experts of which a token asks one or two: forward and backward, four ways.

python benchmarks/moe.py

Two loops over experts stand beside ``grouped``. In one, every expert reads all tokens
and a boolean mask keeps its own, as the formula is written: it computes E / k times too
much. In the other, the mask picks the rows that an expert reads, so that it computes no
more than ``grouped``, and only reads and writes each row more often.
"""

import torch
from common import interleaved, print_table, write_result
from torch import Tensor, nn

from minillm.model import GPTConfig
from minillm.model.experts import buffered, grouped, masked
from minillm.model.layers import SwiGLU
from minillm.model.routing import Routing, capacity, choose_experts, drop_overflow

E = 8
SHAPES = {  # k, N, C, F
    "top 2 of 8, 64 wide": (2, 2048, 64, 96),
    "top 2 of 8, 256 wide": (2, 2048, 256, 384),
    "top 1 of 8, 64 wide": (1, 2048, 64, 192),
    "top 2 of 8, 64 wide, 64 tokens": (2, 64, 64, 96),
}


def picked(x: Tensor, routing: Routing, experts) -> Tensor:
    """A loop in which a boolean mask picks each expert's rows."""
    y = torch.zeros_like(x)
    gates = torch.zeros_like(routing.scores).index_put(
        (routing.tokens, routing.experts), routing.gates
    )
    asked = torch.zeros_like(gates, dtype=torch.bool)
    asked[routing.tokens, routing.experts] = True
    for e, expert in enumerate(experts):
        rows = asked[:, e]
        y[rows] += gates[rows, e, None] * expert(x[rows])
    return y


def measure(k: int, N: int, C: int, F: int) -> dict[str, dict]:
    torch.manual_seed(0)
    shape = GPTConfig(64, n_head=2, n_embd=C, n_hidden=F)
    experts = nn.ModuleList(SwiGLU(shape) for _ in range(E))
    x = torch.randn(N, C, requires_grad=True)
    scores = torch.randn(N, E).softmax(-1).requires_grad_()
    size = capacity(N, E, k, factor=1.25)
    leaves = [x, scores, *experts.parameters()]

    def both(way, *more, kept=lambda routing: routing):
        y = way(x, kept(choose_experts(scores, k)), experts, *more)
        return y, torch.autograd.grad(y.square().sum(), leaves)

    def some(routing):
        return drop_overflow(routing, size)

    rivals = {
        "grouped": lambda: both(grouped),
        "mask multiplies": lambda: both(masked),
        "mask picks rows": lambda: both(picked),
        "buffers, factor 1.25": lambda: both(buffered, size, kept=some),
    }
    (y, gradients), *others = [rivals[name]() for name in list(rivals)[:3]]
    for other, theirs in others:
        torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-5)
        for a, b in zip(theirs, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    n = max(1, 2048 // N)  # a clock tick is no time for 64 tokens
    timed = {
        name: lambda run=run: [run() for _ in range(n)] for name, run in rivals.items()
    }
    return interleaved(timed, repeats=25)


def main():
    found = {name: measure(*shape) for name, shape in SHAPES.items()}
    for name, timings in found.items():
        print_table(name, timings)
    write_result("moe", {"experts": E, "shapes": found}, "torch")


if __name__ == "__main__":
    main()
