r"""Attention whose memory grows with the length of a text and not with its square.

.. math:: o_i = \sum_j softmax_j(q_i \cdot k_j / \sqrt D) \, v_j

over the keys j that query i sees. ``flash_attention`` is the one door: on a GPU it runs
the Triton kernels, elsewhere their twin in PyTorch. Both are exact: tiles change the
order of additions and nothing else. ``tiled`` tells how it works, ``triton_forward``
and ``triton_backward`` make it fast.
"""

import importlib.util

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require, require_count, require_one_of
from minillm.kernels import tiled

Lengths = Int[Tensor, " B"] | tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None


def flash_attention(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B G Tk D"],
    v: Float[Tensor, "B G Tk D"],
    causal: bool = True,
    window: int | None = None,
    lengths: Lengths = None,
    impl: str = "auto",
) -> Float[Tensor, "B H Tq D"]:
    r"""Attention by tiles: O(T) memory, exact, bitwise the same in every run.

    Query i of Lq stands at position i + Lk - Lq: the last query meets the last key. A
    row that sees nothing is 0, and so is padding; neither gets or gives a gradient.

    Args:
        q: queries; every H / G heads in a row share a head of k and v.
        k, v: keys and values. Tensors that are not contiguous are copied.
        causal: whether a query sees no key after its own position.
        window: how many keys a query sees backwards, its own included; without
            ``causal`` as many forwards. ``None`` is all.
        lengths: of the texts, where padding follows them: one tensor where queries and
            keys are the same tokens, else a pair, (of queries, of keys). On the CPU,
            or reading them waits for the GPU. ``None`` is no padding.
        impl: "triton", "tiled" (the twin), or "auto": Triton for tensors on a GPU.

    Raises:
        ValueError: shapes, types or devices that do not belong together, empty tensors,
            lengths that the tensors do not have, or what Triton cannot do here.

    Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), section 3.1. Windows: Jiang
        et al. 2023 (Mistral), section 2.

    Differs from the paper: dq and dk, dv come from two kernels without atomic additions
        (7 matrix products for 5), hence the same bits in every run. Differs from
        ``scaled_dot_product_attention``: with Tq != Tk, ``is_causal`` there aligns the
        first query with the first key.

    >>> q, k, v = torch.randn(1, 4, 5, 16), *torch.randn(2, 1, 2, 5, 16)
    >>> y = torch.nn.functional.scaled_dot_product_attention(
    ...     q, k, v, is_causal=True, enable_gqa=True)
    >>> bool(torch.allclose(flash_attention(q, k, v), y, atol=1e-5))
    True
    """
    check_tensors(q, k, v)
    endless = q.shape[2] + k.shape[2]
    if window is not None:
        require_count(window=window)
        endless = window - 1
    pairs = None if lengths is None else check_lengths(lengths, q, k)
    right = 0 if causal else endless
    return FlashAttention.apply(q, k, v, pairs, endless, right, backend(impl, q))


class FlashAttention(torch.autograd.Function):
    """What both implementations share: what is kept for the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, left, right, impl):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, L = impl.forward(q, k, v, lengths, left, right)
        ctx.save_for_backward(q, k, v, out, L)
        ctx.rest = lengths, left, right
        ctx.impl = impl
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do):
        grads = ctx.impl.backward(do.contiguous(), *ctx.saved_tensors, *ctx.rest)
        return *grads, None, None, None, None
