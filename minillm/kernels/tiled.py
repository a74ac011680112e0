r"""Attention tile by tile: the scores of a long text never stand in memory together.

Softmax needs a row's maximum and its sum, which only the whole row knows. *Online*
softmax keeps both for the keys met so far, and mends what it has when a new tile of
scores S brings a larger maximum:

.. math:: m' = \max(m, \max_j S_j), \quad
          l' = e^{m - m'} l + \sum_j e^{S_j - m'}, \quad
          o' = e^{m - m'} o + \sum_j e^{S_j - m'} v_j

At the end o / l is the row's output. Of the softmax only :math:`L = m + \ln l` is kept;
the backward pass makes each tile again, :math:`P_{ij} = e^{S_{ij} - L_i}`, and with
:math:`\delta_i = \sum_d do_{id} \, o_{id}` (what the softmax takes back, since its rows
sum to 1)

.. math:: dv_j = \sum_i P_{ij} \, do_i, \qquad
          dS_{ij} = P_{ij} (do_i \cdot v_j - \delta_i), \qquad
          dq_i = \sum_j dS_{ij} k_j / \sqrt D, \quad dk_j = \sum_i dS_{ij} q_i / \sqrt D

This is the twin in PyTorch of the kernels in ``triton_forward`` and
``triton_backward``: the same names, the same tiles, in the same order. It is for
reading, for tests, and for machines without Triton; torch's own attention is faster.

Everything about who sees whom is in two numbers. A query at position p sees the keys
from p - left to p + right: right = 0 is causal, a left that is not endless is a window.
With Lq queries and Lk keys, query i stands at p = i + Lk - Lq, so that the last query
meets the last key, as decoding with a cache wants it.

Sources: Milakov & Gimelshein 2018 (online softmax), algorithm 3; Dao et al. 2022
(FlashAttention), algorithms 1 and 4; Dao 2023 (FlashAttention-2), section 3.1.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

LOWEST = -3.4e38  # of m: finite, because -inf - -inf is NaN in a row that sees nothing
LOG2E = math.log2(math.e)  # exponentials are powers of 2, as the hardware has them
BQ, BK = 64, 64  # queries and keys of a tile

Heads = Float[Tensor, "*B G R Lq D"]  # queries; R heads share a head of keys
KeyHeads = Float[Tensor, "*B G 1 Lk D"]


def edges(first, last, back, ahead, limit, block):
    """Where the tiles begin that positions first..last see: partly, wholly, partly.

    Each position p sees from p - back to p + ahead, within 0..limit-1. Tiles before
    the first bound and after the last are seen by none and never visited; those
    between the middle two are seen by all and need no mask. The kernels compile this
    very function: plain whole numbers, no type in its head, no negative one divided.

    Returns:
        four bounds of three runs of tiles, each tile ``block`` wide.

    >>> edges(first=8, last=11, back=99, ahead=0, limit=12, block=4)   # causal
    (0, 0, 8, 12)
    >>> edges(first=8, last=11, back=5, ahead=0, limit=12, block=4)    # with a window
    (0, 8, 8, 12)
    """
    limit = limit if first <= last else 0
    begin = max(first - back, 0) // block * block
    end = min(max(last + ahead + 1, 0), limit)
    full = (max(last - back, 0) + block - 1) // block * block
    full = min(full, (end + block - 1) // block * block)
    full_end = min(max(first + ahead + 1, 0), limit) // block * block
    return begin, full, max(full, full_end), end


def tiles(*where: int) -> Iterator[tuple[slice, bool]]:
    """The tiles between the edges, each with whether it needs no mask.

    >>> list(tiles(4, 7, 99, 0, 8, 4))
    [(slice(0, 4, None), True), (slice(4, 8, None), False)]
    """
    *_, limit, block = where
    bounds = edges(*where)
    for part in range(3):
        for start in range(bounds[part], bounds[part + 1], block):
            yield slice(start, min(start + block, limit)), part == 1


def scores(
    q: Heads, k: KeyHeads, p: Tensor, j: Tensor, left: int, right: int, full: bool
) -> Float[Tensor, "*B G R BQ BK"]:
    """Products of queries and keys, -inf where position p does not see key j.

    >>> one, at = torch.ones(2, 1), torch.arange(2)
    >>> scores(one, one, at[:, None], at, left=9, right=0, full=False)
    tensor([[1., -inf],
            [1., 1.]])
    """
    s = q @ k.mT
    return s if full else s.masked_fill((j - p > right) | (p - j > left), -math.inf)


def forward(
    q: Heads, k: KeyHeads, v: KeyHeads, left: int, right: int
) -> tuple[Heads, Float[Tensor, "*B G R Lq"]]:
    """Output and L, for one text; rows that see nothing have output 0 and L = inf.

    Where L is infinite the backward pass finds P = 0 without asking.

    >>> q, k, v = torch.randn(3, 1, 5, 8)
    >>> out, L = forward(q, k, v, left=5, right=0)
    >>> bool(torch.allclose(out[..., 0, :], v[..., 0, :]))   # the first sees itself
    True
    """
    Lq, Lk, D = q.shape[-2], *k.shape[-2:]
    shift, scale = Lk - Lq, LOG2E / math.sqrt(D)
    at = torch.arange(max(Lq, Lk), device=q.device)
    out, L = torch.zeros_like(q), q.new_full(q.shape[:-1], math.inf)
    for i0 in range(0, Lq, BQ):
        i = slice(i0, min(i0 + BQ, Lq))
        q_i, p = q[..., i, :], at[i, None] + shift
        m = q.new_full(q_i.shape[:-1], LOWEST)
        l, o = torch.zeros_like(m), torch.zeros_like(q_i)
        for j, full in tiles(i0 + shift, i.stop - 1 + shift, left, right, Lk, BK):
            s = scores(q_i, k[..., j, :], p, at[j], left, right, full) * scale
            m_new = torch.maximum(m, s.amax(-1))
            P = torch.exp2(s - m_new[..., None])
            shrink = torch.exp2(m - m_new)
            l = l * shrink + P.sum(-1)
            o = o * shrink[..., None] + P @ v[..., j, :]
            m = m_new
        out[..., i, :] = torch.where(l > 0, 1 / l, 0.0)[..., None] * o
        L[..., i] = torch.where(l > 0, m + l.log2(), math.inf)
    return out, L


def backward(
    do: Heads, q: Heads, k: KeyHeads, v: KeyHeads, o: Heads, L: Tensor, *sight: int
) -> tuple[Heads, KeyHeads, KeyHeads]:
    """Gradients of q, k and v, each tile of P made twice: by rows and by columns.

    Making it once would take 5 products and not 7, but then either dq or dk has to be
    added up by many programs at once, in an order that nobody knows.
    """
    delta = (do * o).sum(-1)
    return dq(do, q, k, v, L, delta, *sight), *dkdv(do, q, k, v, L, delta, *sight)


def dq(
    do: Heads, q: Heads, k: KeyHeads, v: KeyHeads, L: Tensor, delta: Tensor,
    left: int, right: int,
) -> Heads:
    """The gradient of the queries: rows stay, tiles of keys pass by."""
    Lq, Lk, D = q.shape[-2], *k.shape[-2:]
    shift, scale = Lk - Lq, LOG2E / math.sqrt(D)
    at = torch.arange(max(Lq, Lk), device=q.device)
    out = torch.zeros_like(q)
    for i0 in range(0, Lq, BQ):
        i = slice(i0, min(i0 + BQ, Lq))
        q_i, do_i, p = q[..., i, :], do[..., i, :], at[i, None] + shift
        for j, full in tiles(i0 + shift, i.stop - 1 + shift, left, right, Lk, BK):
            k_j = k[..., j, :]
            s = scores(q_i, k_j, p, at[j], left, right, full)
            P = torch.exp2(s * scale - L[..., i, None])
            dS = P * (do_i @ v[..., j, :].mT - delta[..., i, None])
            out[..., i, :] += dS @ k_j
    return out / math.sqrt(D)


def dkdv(
    do: Heads, q: Heads, k: KeyHeads, v: KeyHeads, L: Tensor, delta: Tensor,
    left: int, right: int,
) -> tuple[KeyHeads, KeyHeads]:
    """The gradients of keys and values: columns stay, tiles of queries pass by.

    A key at j is seen by the positions from j - right to j + left: the roles of the two
    are exchanged. Query heads that share a key head add up.
    """
    Lq, Lk, D = q.shape[-2], *k.shape[-2:]
    shift, scale = Lk - Lq, LOG2E / math.sqrt(D)
    at = torch.arange(max(Lq, Lk), device=q.device)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for j0 in range(0, Lk, BK):
        j = slice(j0, min(j0 + BK, Lk))
        k_j, v_j = k[..., j, :], v[..., j, :]
        for i, full in tiles(j0 - shift, j.stop - 1 - shift, right, left, Lq, BQ):
            q_i, do_i, p = q[..., i, :], do[..., i, :], at[i, None] + shift
            s = scores(q_i, k_j, p, at[j], left, right, full)
            P = torch.exp2(s * scale - L[..., i, None])
            dS = P * (do_i @ v_j.mT - delta[..., i, None])
            dv[..., j, :] += (P.mT @ do_i).sum(-3, keepdim=True)
            dk[..., j, :] += (dS.mT @ q_i).sum(-3, keepdim=True)
    return dk / math.sqrt(D), dv


class TiledAttention(torch.autograd.Function):
    """Both passes as one operation, so that autograd keeps L and no tile of P."""

    @staticmethod
    def forward(ctx, q: Heads, k: KeyHeads, v: KeyHeads, left: int, right: int) -> Heads:
        o, L = forward(q, k, v, left, right)
        ctx.save_for_backward(q, k, v, o, L)
        ctx.sight = left, right
        return o

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do: Heads) -> tuple:
        return *backward(do, *ctx.saved_tensors, *ctx.sight), None, None


def tiled_attention(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B G Tk D"],
    v: Float[Tensor, "B G Tk D"],
    lengths: list[list[int]] | None,
    left: int,
    right: int,
) -> Float[Tensor, "B H Tq D"]:
    """Attention of a batch: see ``flash_attention``, which checks what comes in.

    Half precisions are lifted to float32. Texts of unequal ``lengths``, pairs of (Lq,
    Lk), go through the tiles one by one and get zeros where they end.

    >>> q, k, v = torch.randn(3, 2, 2, 5, 8)
    >>> tiled_attention(q, k, v, [[5, 5], [3, 4]], left=5, right=0)[1, :, 3:].abs().sum()
    tensor(0.)
    """
    dtype, Tq = torch.promote_types(q.dtype, torch.float32), q.shape[2]
    groups = q.unflatten(1, (k.shape[1], -1)), k.unsqueeze(2), v.unsqueeze(2)
    q5, k5, v5 = (x.to(dtype) for x in groups)
    if lengths is None:
        out = TiledAttention.apply(q5, k5, v5, left, right)
        return out.flatten(1, 2).to(q.dtype)
    rows = []
    for b, (Lq, Lk) in enumerate(lengths):
        text = q5[b, ..., :Lq, :], k5[b, ..., :Lk, :], v5[b, ..., :Lk, :]
        row = TiledAttention.apply(*text, left, right)
        rows.append(torch.nn.functional.pad(row, (0, 0, 0, Tq - Lq)))
    return torch.stack(rows).flatten(1, 2).to(q.dtype)
