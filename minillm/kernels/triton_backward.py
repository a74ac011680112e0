r"""The backward pass of attention in Triton: two kernels, one the transpose of the other.

Each tile of P is made again from q, k and L, which is cheaper than to have kept it.
``dq_kernel`` holds a tile of queries and lets keys pass by; ``dkdv_kernel`` holds a tile
of keys and lets queries pass by, of all heads that share these keys. Every result has
one writer, so there are no atomic additions, and the same input gives the same bits.

The transposed tiles of ``dkdv_kernel`` (keys down, queries across) are made as such: to
turn a tile around on its way between two products would go through shared memory.

Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), algorithm 2, with its inner loop
split in two as in section 3.2's remark on the order of loops.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.errors import require
from minillm.kernels import tiled
from minillm.kernels.triton_forward import (
    DTYPES, HEAD_SIZES, INTERPRETED, config, edges, forward, scores
)  # fmt: skip

LOG2E = tl.constexpr(tiled.LOG2E)


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
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(DELTA + head * Tq + i, delta, mask=i < Tq)
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
            dP = tl.dot(do, tl.trans(v), input_precision="ieee")
            dS = (P * (dP - delta[:, None])).to(k.dtype)
            dq = tl.dot(dS, k, dq, input_precision="ieee")
    dq *= scale / LOG2E
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
    dk = tl.zeros([BK, D], tl.float32)
    dv = tl.zeros([BK, D], tl.float32)
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
                dP = tl.dot(v, tl.trans(do), input_precision="ieee")
                dS = (P * (dP - delta)).to(q.dtype)
                dk = tl.dot(dS, q, dk, input_precision="ieee")
    # Beyond the text keys were 0 and their P was not.
    dk = tl.where(text, dk * (scale / LOG2E), 0.0).to(k.dtype)
    dv = tl.where(text, dv, 0.0).to(k.dtype)
    tl.store(DK + group * Tk * D + cols, dk, mask=j[:, None] < Tk)
    tl.store(DV + group * Tk * D + cols, dv, mask=j[:, None] < Tk)


class TritonAttention(torch.autograd.Function):
    """Both passes as one operation for autograd."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, left, right):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        with torch.cuda.device_of(q):
            out, L = forward(q, k, v, lengths, left, right)
        ctx.save_for_backward(q, k, v, out, L, lengths)
        ctx.sight = left, right
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        with torch.cuda.device_of(do):
            grads = backward(do.contiguous(), *ctx.saved_tensors, *ctx.sight)
        return *grads, None, None, None


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, L: Tensor,
    lengths: Tensor | None, left: int, right: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, all contiguous."""
    (B, H, Tq, D), (G, Tk) = q.shape, k.shape[1:3]
    delta, dq, dk, dv = (torch.empty_like(x) for x in (L, q, k, v))
    sizes = (H, H // G, Tq, Tk, tiled.LOG2E / math.sqrt(D), left, right, D)
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
        ValueError: a head size without a configuration, a type that the kernels do not
            have, or tensors on the CPU without Triton's interpreter.
    """
    D, twin = q.shape[-1], 'or take impl="tiled"'
    require(D in HEAD_SIZES, "D", D, f"one of {HEAD_SIZES}", f"pad the heads, {twin}")
    require(q.dtype in DTYPES, "q", q, f"one of {DTYPES}", f"use .to(...), {twin}")
    here = q.is_cuda or INTERPRETED
    remedy = f"set TRITON_INTERPRET=1 before Python starts, move them, {twin}"
    require(here, "q", q.device, "on a GPU for compiled kernels", remedy)
    bf16 = INTERPRETED and q.dtype == torch.bfloat16
    remedy = f"the interpreter multiplies its bits; use float32, {twin}"
    require(not bf16, "q", q, "of another type than bfloat16", remedy)
    if lengths is not None:
        lengths = torch.tensor(lengths, dtype=torch.int32, device=q.device)
    return TritonAttention.apply(q, k, v, lengths, left, right)
