r"""The forward pass of attention in Triton; ``tiled_forward`` has the formulas.

A *program* is what one processor of the GPU does: here, all keys for one tile of
queries of one head. Its o, m and Z stay in registers, tiles of k and v pass by, and
nothing of the size T x T is ever written. Three things make it fast:

- tiles that no query sees are not visited, and those that all see need no mask;
- both products run on tensor cores: half precision in, float32 out;
- exponentials are powers of 2, with the scale folded into one multiplication.

Loads are plain pointers, so that this runs in Triton's interpreter as well (set
TRITON_INTERPRET=1 before the first import of triton); there, ``print`` works.

Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), algorithm 1.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels import tiled_forward as tiled

LOWEST = tl.constexpr(tiled.LOWEST)
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 when triton came in
edges = tiled.edges if INTERPRETED else triton.jit(tiled.edges)  # the twin's own


class Config(NamedTuple):
    """How a kernel is cut: queries and keys of a tile, warps, tiles on their way."""

    BQ: int
    BK: int
    num_warps: int
    num_stages: int


# None spills registers on Hopper, a test says; benchmarks/attention.py tunes them.
CONFIGS = {
    ("forward", 32): Config(128, 64, 4, 3),
    ("forward", 64): Config(128, 128, 8, 2),
    ("forward", 128): Config(128, 128, 8, 2),
    ("dq", 32): Config(128, 64, 8, 2),
    ("dq", 64): Config(128, 64, 8, 2),
    ("dq", 128): Config(128, 64, 8, 2),
    ("dkdv", 32): Config(64, 128, 8, 2),
    ("dkdv", 64): Config(64, 128, 8, 2),
    ("dkdv", 128): Config(32, 128, 8, 2),
}
FLOAT32 = Config(32, 32, 8, 1)  # whole floats know no tensor cores: exact, not fast
HEAD_SIZES = sorted({D for _, D in CONFIGS})
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = DTYPES[:2] if INTERPRETED else DTYPES  # it would multiply bfloat16's bits


@triton.jit
def scores(a, b, p, j, Lk, left, right, full: tl.constexpr):
    """Products of rows, -inf where the query at p does not see key j; full: all do."""
    s = tl.dot(a, tl.trans(b), input_precision="ieee")
    if not full:
        s = tl.where((j - p <= right) & (p - j <= left) & (j < Lk), s, -float("inf"))
    return s


@triton.jit
def forward_kernel(
    Q, K, V, OUT, L, LENGTHS, H, R, Tq, Tk, scale, left, right,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of queries: its output, and L = m + log2 Z."""
    blocks = tl.cdiv(Tq, BQ)
    head = (tl.program_id(0) // blocks).to(tl.int64)  # its offsets may pass 2^31
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BQ  # the longest rows go first
    Lq, Lk = Tq, Tk
    if LENGTHS is not None:
        Lq = tl.load(LENGTHS + head // H * 2)
        Lk = tl.load(LENGTHS + head // H * 2 + 1)
    Q, OUT, L = Q + head * Tq * D, OUT + head * Tq * D, L + head * Tq
    K, V = K + head // R * Tk * D, V + head // R * Tk * D
    shift, d = Lk - Lq, tl.arange(0, D)[None, :]
    i = i0 + tl.arange(0, BQ)
    q = tl.load(Q + i[:, None] * D + d, mask=i[:, None] < Lq, other=0.0)
    m = tl.full([BQ], LOWEST, tl.float32)
    Z = tl.zeros([BQ], tl.float32)
    o = tl.zeros([BQ, D], tl.float32)
    bounds = edges(i0 + shift, min(i0 + BQ, Lq) - 1 + shift, left, right, Lk, BK)
    for part in tl.static_range(3):
        for j0 in range(bounds[part], bounds[part + 1], BK):
            j = j0 + tl.arange(0, BK)
            real = (j[:, None] < Lk) | (part == 1)
            k = tl.load(K + j[:, None] * D + d, mask=real, other=0.0)
            v = tl.load(V + j[:, None] * D + d, mask=real, other=0.0)
            p = i[:, None] + shift
            s = scores(q, k, p, j[None, :], Lk, left, right, part == 1)
            m_new = tl.maximum(m, tl.max(s, 1) * scale)
            P = tl.exp2(s * scale - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            Z = Z * shrink + tl.sum(P, 1)
            o = o * shrink[:, None]
            o = tl.dot(P.to(v.dtype), v, o, input_precision="ieee")
            m = m_new
    seeing = (Z > 0) & (i < Lq)
    Z = tl.where(seeing, Z, 1.0)
    o = tl.where(seeing[:, None], o / Z[:, None], 0.0)
    tl.store(OUT + i[:, None] * D + d, o.to(q.dtype), mask=i[:, None] < Tq)
    tl.store(L + i, tl.where(seeing, m + tl.log2(Z), float("inf")), mask=i < Tq)


def config(kernel: str, q: Tensor) -> Config:
    """How a kernel is cut for this head size and type."""
    return FLOAT32 if q.dtype == torch.float32 else CONFIGS[kernel, q.shape[-1]]


def forward(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, left: int, right: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Output; and, to keep, output and L. ``lengths`` are int32 pairs (Lq, Lk)."""
    (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
    out, L = torch.empty_like(q), q.new_empty(B, H, Tq, dtype=torch.float32)
    c = config("forward", q)
    forward_kernel[triton.cdiv(Tq, c.BQ) * B * H,](
        q, k, v, out, L, lengths, H, H // G, Tq, Tk, tiled.LOG2E / math.sqrt(D),
        left, right, D, **c._asdict(),
    )  # fmt: skip
    return out, (out, L)
