r"""The gradient of attention, tile by tile, from q, k, v, o and L alone.

.. math:: P_{ij} = e^{S_{ij} - L_i}, \qquad dv_j = \sum_i P_{ij} \, do_i, \qquad
          dS_{ij} = P_{ij} (do_i \cdot v_j - \delta_i)

          dq_i = \sum_j dS_{ij} k_j / \sqrt D, \qquad
          dk_j = \sum_i dS_{ij} q_i / \sqrt D, \qquad
          \delta_i = \sum_d do_{id} \, o_{id}

Rows of a softmax sum to 1, so what raises one weight lowers the others; delta is what
they lose. It needs no scores: :math:`\sum_j P_{ij} \, do_i \cdot v_j = do_i \cdot o_i`.

Each tile of P is made twice, by ``dq`` and by ``dkdv``. Making it once would take 5
matrix products and not 7, but then many programs would add to the same dq at once, in
an order that nobody knows.

This is the twin in PyTorch of the kernels in ``triton_backward``.

Source: Dao et al. 2022 (FlashAttention, arXiv:2205.14135), algorithm 4 and section B.2.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.kernels import tiled_forward as sizes  # BQ and BK, as they are now
from minillm.kernels.choice import Passes
from minillm.kernels.tiled_forward import LOG2E, Heads, KeyHeads, forward, scores, tiles


def backward(
    do: Heads, q: Heads, k: KeyHeads, v: KeyHeads, o: Heads, L: Tensor, *sight: int
) -> tuple[Heads, KeyHeads, KeyHeads]:
    """Gradients of q, k and v; ``sight`` is left, right."""
    delta = (do * o).sum(-1)
    return dq(do, q, k, v, L, delta, *sight), *dkdv(do, q, k, v, L, delta, *sight)


def dq(
    do: Heads,
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    L: Tensor,
    delta: Tensor,
    left: int,
    right: int,
) -> Heads:
    """The gradient of the queries: rows stay, tiles of keys pass by."""
    Lq, Lk, D = q.shape[-2], *k.shape[-2:]
    shift, scale = Lk - Lq, LOG2E / math.sqrt(D)
    at, B = torch.arange(max(Lq, Lk), device=q.device), sizes.BK
    out = torch.zeros_like(q)
    for i0 in range(0, Lq, sizes.BQ):
        i = slice(i0, min(i0 + sizes.BQ, Lq))
        q_i, do_i, p = q[..., i, :], do[..., i, :], at[i, None] + shift
        for j, full in tiles(i0 + shift, i.stop - 1 + shift, left, right, Lk, B):
            k_j = k[..., j, :]
            s = scores(q_i, k_j, p, at[j], left, right, full)
            P = torch.exp2(s * scale - L[..., i, None])
            dS = P * (do_i @ v[..., j, :].mT - delta[..., i, None])
            out[..., i, :] += dS @ k_j
    return out / math.sqrt(D)


def dkdv(
    do: Heads,
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    L: Tensor,
    delta: Tensor,
    left: int,
    right: int,
) -> tuple[KeyHeads, KeyHeads]:
    """The gradients of keys and values: columns stay, tiles of queries pass by.

    A key at j is seen by the positions from j - right to j + left: the roles of the two
    are exchanged. Query heads that share a key head add up.
    """
    Lq, Lk, D = q.shape[-2], *k.shape[-2:]
    shift, scale = Lk - Lq, LOG2E / math.sqrt(D)
    at, B = torch.arange(max(Lq, Lk), device=q.device), sizes.BQ
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for j0 in range(0, Lk, sizes.BK):
        j = slice(j0, min(j0 + sizes.BK, Lk))
        k_j, v_j = k[..., j, :], v[..., j, :]
        for i, full in tiles(j0 - shift, j.stop - 1 - shift, right, left, Lq, B):
            q_i, do_i, p = q[..., i, :], do[..., i, :], at[i, None] + shift
            s = scores(q_i, k_j, p, at[j], left, right, full)
            P = torch.exp2(s * scale - L[..., i, None])
            dS = P * (do_i @ v_j.mT - delta[..., i, None])
            dv[..., j, :] += (P.mT @ do_i).sum(-3, keepdim=True)
            dk[..., j, :] += (dS.mT @ q_i).sum(-3, keepdim=True)
    return dk / math.sqrt(D), dv


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
    >>> y = tiled_attention(q, k, v, [[5, 5], [3, 4]], left=5, right=0)
    >>> bool((y[1, :, 3:] == 0).all())
    True
    """
    dtype, Tq = torch.promote_types(q.dtype, torch.float32), q.shape[2]
    groups = q.unflatten(1, (k.shape[1], -1)), k.unsqueeze(2), v.unsqueeze(2)
    q5, k5, v5 = (x.to(dtype) for x in groups)
    if lengths is None:
        out = Passes.apply(forward, backward, (left, right), q5, k5, v5)
        return out.flatten(1, 2).to(q.dtype)
    rows = []
    for b, (Lq, Lk) in enumerate(lengths):
        text = q5[b, ..., :Lq, :], k5[b, ..., :Lk, :], v5[b, ..., :Lk, :]
        row = Passes.apply(forward, backward, (left, right), *text)
        rows.append(torch.nn.functional.pad(row, (0, 0, 0, Tq - Lq)))
    return torch.stack(rows).flatten(1, 2).to(q.dtype)
