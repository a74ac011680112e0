r"""Attention tile by tile: the scores of a long text never stand in memory together.

Softmax needs a row's maximum and its sum, which only the whole row knows. *Online*
softmax keeps both for the keys met so far, and mends what it has when a new tile of
scores S brings a larger maximum:

.. math:: m' = \max(m, \max_j S_j), \quad
          Z' = e^{m - m'} Z + \sum_j e^{S_j - m'}, \quad
          o' = e^{m - m'} o + \sum_j e^{S_j - m'} v_j

At the end o / Z is the row's output, and of the softmax only :math:`L = m + \ln Z` is
kept, from which the backward pass makes each tile again.

This is the twin in PyTorch of the kernel in ``triton_forward``: the same names, the
same tiles, in the same order. It is for reading, for tests, and for machines without
Triton; torch's own attention is faster.

Who sees whom is in two numbers. A query at position p sees the keys from p - left to
p + right: right = 0 is causal, and a left that ends before the text does is a window.
With Lq queries and Lk keys, query i stands at p = i + Lk - Lq, so that the last query
meets the last key, as decoding with a cache wants it.

Sources: Milakov & Gimelshein 2018 (online softmax, arXiv:1805.02867), algorithm 3; Dao
et al. 2022 (FlashAttention, arXiv:2205.14135), algorithm 1; Dao 2023
(FlashAttention-2, arXiv:2307.08691), section 3.1.
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
    between the two in the middle are seen by all and need no mask. The kernels compile
    this very function: whole numbers, no type in its head, no negative one divided.

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
) -> tuple[Heads, tuple[Heads, Float[Tensor, "*B G R Lq"]]]:
    """Output; and, to keep, output and L, in base 2.

    A row that sees nothing has output 0 and L = inf; there the backward pass finds
    P = 0 without asking.

    >>> q, k, v = torch.randn(3, 1, 5, 8)
    >>> out, _ = forward(q, k, v, left=5, right=0)
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
        Z, o = torch.zeros_like(m), torch.zeros_like(q_i)
        for j, full in tiles(i0 + shift, i.stop - 1 + shift, left, right, Lk, BK):
            s = scores(q_i, k[..., j, :], p, at[j], left, right, full) * scale
            m_new = torch.maximum(m, s.amax(-1))
            P = torch.exp2(s - m_new[..., None])
            shrink = torch.exp2(m - m_new)
            Z = Z * shrink + P.sum(-1)
            o = o * shrink[..., None] + P @ v[..., j, :]
            m = m_new
        out[..., i, :] = torch.where(Z > 0, 1 / Z, 0.0)[..., None] * o
        L[..., i] = torch.where(Z > 0, m + Z.log2(), math.inf)
    return out, (out, L)
