"""RMSNorm in Triton; ``rmsnorm`` has the formulas, the names and the twin.

A kernel is written for one *program*, which finds out by ``program_id`` which part of
the work is its own: one row forward, a strip of rows backward. It loads a whole row at
a time into registers, padded to a power of two because Triton's vectors have such
lengths; the mask keeps what is not there out of loads, sums and stores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.errors import require
from minillm.kernels.rmsnorm import STRIP

LONGEST = 2**14  # numbers of a row; more would not fit into a program's registers


@triton.jit
def forward_kernel(X, W, Y, R, C, eps, BLOCK: tl.constexpr):
    """One row: y and r."""
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(X + row * C + c, mask=c < C, other=0.0).to(tl.float32)
    w = tl.load(W + c, mask=c < C, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 0) / C + eps)
    tl.store(R + row, r)
    tl.store(Y + row * C + c, x * r * w, mask=c < C)


@triton.jit
def backward_kernel(DY, X, W, R, DX, DW, N, C, STRIP, BLOCK: tl.constexpr):
    """A strip of rows: dx, and the strip's part of dw."""
    strip, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    w = tl.load(W + c, mask=c < C, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for row in range(strip * STRIP, min(strip * STRIP + STRIP, N)):
        x = tl.load(X + row * C + c, mask=c < C, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * C + c, mask=c < C, other=0.0).to(tl.float32)
        r = tl.load(R + row)
        along = tl.sum(dy * w * x, 0) / C
        dx = r * (dy * w - x * (r * r * along))
        tl.store(DX + row * C + c, dx, mask=c < C)
        dw += dy * x * r
    tl.store(DW + strip * C + c, dw, mask=c < C)


def block(C: int) -> dict[str, int]:
    """The vector that holds a row, and warps to share it."""
    require(C <= LONGEST, "C", C, f"at most {LONGEST}", 'take impl="tiled"')
    BLOCK = triton.next_power_of_2(C)
    return {"BLOCK": BLOCK, "num_warps": max(1, min(8, BLOCK // 256))}


def forward(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor]]:
    """The normalised rows, and r to keep for the backward pass."""
    N, C = x.shape
    y, r = torch.empty_like(x), x.new_empty(N, dtype=torch.float32)
    forward_kernel[N,](x, w, y, r, C, eps, **block(C))
    return y, (r,)


def backward(
    dy: Tensor, x: Tensor, w: Tensor, r: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x and w."""
    (N, C), strips = x.shape, triton.cdiv(len(x), STRIP)
    dx, dw = torch.empty_like(x), x.new_empty(strips, C, dtype=torch.float32)
    backward_kernel[strips,](dy, x, w, r, dx, dw, N, C, STRIP, **block(C))
    return dx, dw.sum(0).to(w.dtype)
