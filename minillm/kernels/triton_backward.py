r"""The gradient of attention in Triton: two kernels, one the transpose of the other.

``dq_kernel`` holds a tile of queries and lets keys pass by; ``dkdv_kernel`` holds a
tile of keys and lets queries pass by, of all heads that share it. Each result has one
writer, so nothing is added atomically, and the same input gives the same bits.

The tiles of ``dkdv_kernel`` are made with keys down and queries across: to turn them
between two products would take a way through shared memory.

``tiled_backward`` has the formulas and their source.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.errors import require
from minillm.kernels import triton_forward
from minillm.kernels.choice import Passes
from minillm.kernels.tiled_forward import LOG2E
from minillm.kernels.triton_forward import config, edges, forward, scores

LN2 = tl.constexpr(1 / LOG2E)


@triton.jit
def dq_kernel(
    DO, Q, K, V, OUT, L, DELTA, DQ, LENGTHS, H, R, Tq, Tk, scale, left, right,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of queries: delta, which the other kernel reads, and the gradient."""
    blocks = tl.cdiv(Tq, BQ)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BQ
    Lq, Lk = Tq, Tk
    if LENGTHS is not None:
        Lq = tl.load(LENGTHS + head // H * 2)
        Lk = tl.load(LENGTHS + head // H * 2 + 1)
    shift, d = Lk - Lq, tl.arange(0, D)[None, :]
    i = i0 + tl.arange(0, BQ)
    rows, text = i[:, None] * D + d, i[:, None] < Lq
    q = tl.load(Q + head * Tq * D + rows, mask=text, other=0.0)
    do = tl.load(DO + head * Tq * D + rows, mask=text, other=0.0)
    o = tl.load(OUT + head * Tq * D + rows, mask=text, other=0.0)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1, keep_dims=True)
    tl.store(DELTA + head * Tq + i[:, None], delta, mask=i[:, None] < Tq)
    L_i = tl.load(L + head * Tq + i, mask=i < Lq, other=float("inf"))[:, None]
    K, V = K + head // R * Tk * D, V + head // R * Tk * D
    dq = tl.zeros([BQ, D], tl.float32)
    bounds = edges(i0 + shift, min(i0 + BQ, Lq) - 1 + shift, left, right, Lk, BK)
    for part in tl.static_range(3):
        for j0 in range(bounds[part], bounds[part + 1], BK):
            j = j0 + tl.arange(0, BK)
            real = (j[:, None] < Lk) | (part == 1)
            k = tl.load(K + j[:, None] * D + d, mask=real, other=0.0)
            v = tl.load(V + j[:, None] * D + d, mask=real, other=0.0)
            p = i[:, None] + shift
            s = scores(q, k, p, j[None, :], Lk, left, right, part == 1)
            P = tl.exp2(s * scale - L_i)
            dS = P * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta)
            dq = tl.dot(dS.to(k.dtype), k, dq, input_precision="ieee")
    dq *= scale * LN2
    tl.store(DQ + head * Tq * D + rows, dq.to(q.dtype), mask=i[:, None] < Tq)


@triton.jit
def dkdv_kernel(
    DO, Q, K, V, L, DELTA, DK, DV, LENGTHS, H, R, Tq, Tk, scale, left, right,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values: their gradients, summed over R query heads."""
    blocks = tl.cdiv(Tk, BK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    j0 = tl.program_id(0) % blocks * BK  # the first keys have the most queries
    Lq, Lk = Tq, Tk
    if LENGTHS is not None:
        Lq = tl.load(LENGTHS + group * R // H * 2)
        Lk = tl.load(LENGTHS + group * R // H * 2 + 1)
    shift, d = Lk - Lq, tl.arange(0, D)[None, :]
    j = j0 + tl.arange(0, BK)
    cols, text = j[:, None] * D + d, j[:, None] < Lk
    k = tl.load(K + group * Tk * D + cols, mask=text, other=0.0)
    v = tl.load(V + group * Tk * D + cols, mask=text, other=0.0)
    dk, dv = tl.zeros([BK, D], tl.float32), tl.zeros([BK, D], tl.float32)
    bounds = edges(j0 - shift, min(j0 + BK, Lk) - 1 - shift, right, left, Lq, BQ)
    for head in range(group * R, group * R + R):
        Q_h, DO_h = Q + head * Tq * D, DO + head * Tq * D
        L_h, DELTA_h = L + head * Tq, DELTA + head * Tq
        for part in tl.static_range(3):
            for i0 in range(bounds[part], bounds[part + 1], BQ):
                i = i0 + tl.arange(0, BQ)
                rows, real = i[:, None] * D + d, (i < Lq) | (part == 1)
                q = tl.load(Q_h + rows, mask=real[:, None], other=0.0)
                do = tl.load(DO_h + rows, mask=real[:, None], other=0.0)
                L_i = tl.load(L_h + i, mask=real, other=float("inf"))[None, :]
                delta = tl.load(DELTA_h + i, mask=real, other=0.0)[None, :]
                p = i[None, :] + shift
                s = scores(k, q, p, j[:, None], Lk, left, right, part == 1)
                P = tl.exp2(s * scale - L_i)
                dv = tl.dot(P.to(q.dtype), do, dv, input_precision="ieee")
                dS = P * (tl.dot(v, tl.trans(do), input_precision="ieee") - delta)
                dk = tl.dot(dS.to(q.dtype), q, dk, input_precision="ieee")
    # Beyond the text keys were 0 and their P was not.
    dk, dv = tl.where(text, dk * (scale * LN2), 0.0), tl.where(text, dv, 0.0)
    tl.store(DK + group * Tk * D + cols, dk.to(k.dtype), mask=j[:, None] < Tk)
    tl.store(DV + group * Tk * D + cols, dv.to(k.dtype), mask=j[:, None] < Tk)


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, L: Tensor,
    lengths: Tensor | None, left: int, right: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
    delta, dq, dk, dv = (torch.empty_like(x) for x in (L, q, k, v))
    sizes = (H, H // G, Tq, Tk, LOG2E / math.sqrt(D), left, right, D)
    c = config("dq", q)
    dq_kernel[triton.cdiv(Tq, c.BQ) * B * H,](
        do, q, k, v, out, L, delta, dq, lengths, *sizes, **c._asdict()
    )
    c = config("dkdv", q)
    dkdv_kernel[triton.cdiv(Tk, c.BK) * B * G,](
        do, q, k, v, L, delta, dk, dv, lengths, *sizes, **c._asdict()
    )
    return dq, dk, dv


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list | None, left: int, right: int
) -> Tensor:
    """Attention of a batch by kernels; see ``flash_attention``.

    Raises:
        ValueError: a head size without a configuration, or a type that the kernels (or
            the interpreter) do not have.
    """
    D, twin = q.shape[-1], 'or take impl="tiled"'
    sizes, types = triton_forward.HEAD_SIZES, triton_forward.DTYPES
    require(D in sizes, "D", D, f"one of {sizes}", f"pad the heads, {twin}")
    require(q.dtype in types, "q", q, f"one of {types}", f"use .to(...), {twin}")
    if lengths is not None:
        lengths = torch.tensor(lengths, dtype=torch.int32, device=q.device)
    return Passes.apply(forward, backward, (lengths, left, right), q, k, v)
