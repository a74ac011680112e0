r"""Attention whose memory grows with the length of a text and not with its square.

.. math:: o_i = \sum_j softmax_j(q_i \cdot k_j / \sqrt D) \, v_j

over the keys j that query i sees. ``flash_attention`` is the one door: on a GPU it runs
the Triton kernels, elsewhere their twin in PyTorch. Both are exact: tiles change the
order of additions and nothing else. ``tiled_forward`` tells how it works.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require, require_count
from minillm.kernels.choice import runs_in_triton
from minillm.kernels.tiled_backward import tiled_attention

Lengths = Int[Tensor, " B"]


def flash_attention(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B G Tk D"],
    v: Float[Tensor, "B G Tk D"],
    causal: bool = True,
    window: int | None = None,
    lengths: Lengths | tuple[Lengths, Lengths] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B H Tq D"]:
    r"""Attention by tiles: O(T) memory, exact, bitwise the same in every run.

    Of Lq queries and Lk keys, query i stands at position i + Lk - Lq: the last query
    meets the last key. What sees nothing is 0, and so is padding; neither gets or gives
    a gradient.

    Args:
        q: queries; every H / G heads in a row share a head of k and v.
        k, v: keys and values. Tensors that are not contiguous are copied.
        causal: whether a query sees no key after its own position.
        window: how many keys a query sees backwards, its own included; without
            ``causal`` as many forwards. ``None`` is all.
        lengths: of the texts, where padding follows them: one tensor where queries and
            keys are the same tokens, else a pair, (of queries, of keys). On the CPU,
            or reading them waits for the GPU. ``None`` is no padding.
        impl: "triton", "tiled" (the twin), or "auto"; see ``runs_in_triton``.

    Raises:
        ValueError: shapes, types or devices that do not belong together, empty tensors,
            lengths that the tensors do not have, or what Triton cannot do here.

    Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), section 3.1. Windows: Jiang
        et al. 2023 (Mistral 7B), section 2.

    Differs from the paper: dq and dk, dv come from two kernels without atomic additions
        (7 matrix products for 5), hence the same bits in every run. Differs from
        ``scaled_dot_product_attention``: with Tq != Tk, ``is_causal`` there lets the
        first query meet the first key.

    >>> q, k, v = torch.randn(1, 4, 5, 16), *torch.randn(2, 1, 2, 5, 16)
    >>> y = torch.nn.functional.scaled_dot_product_attention(
    ...     q, k, v, is_causal=True, enable_gqa=True)
    >>> bool(torch.allclose(flash_attention(q, k, v), y, atol=1e-5))
    True
    """
    check_tensors(q, k, v)
    pairs = None if lengths is None else length_pairs(lengths, q, k)
    left = q.shape[2] + k.shape[2]  # beyond every key
    if window is not None:
        require_count(window=window)
        left = min(left, window - 1)
    sight = left, 0 if causal else left
    if not runs_in_triton(impl, q):
        return tiled_attention(q, k, v, pairs, *sight)
    from minillm.kernels.triton_backward import triton_attention

    return triton_attention(q, k, v, pairs, *sight)


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse queries, keys and values that do not belong together.

    >>> check_tensors(torch.ones(1, 3, 4, 8), *torch.ones(2, 1, 2, 4, 8))
    Traceback (most recent call last):
    ValueError: q must be of H heads, a multiple of the 2 heads of k, got ...
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        shape = tuple(x.shape)
        sizes = "of shape (B, heads, T, D), no size 0"
        ok = x.dim() == 4 and x.numel() > 0
        require(ok, name, shape, sizes, "give at least one token to one head")
        alike = x.is_floating_point() and (x.dtype, x.device) == (q.dtype, q.device)
        same = f"floating-point, of {q.dtype} and on {q.device} like q"
        require(alike, name, f"{x.dtype} on {x.device}", same, "use .to(...)")
    require(k.shape == v.shape, "v", v, f"of k's shape {tuple(k.shape)}", "match them")
    (B, H, _, D), G = q.shape, k.shape[1]
    ok = (k.shape[0], k.shape[3]) == (B, D)
    require(ok, "k", k, f"of B = {B} and D = {D} like q", "match them")
    heads = f"of H heads, a multiple of the {G} heads of k"
    require(H % G == 0, "q", q, heads, "every H / G query heads share one")


def length_pairs(
    lengths: Lengths | tuple[Lengths, Lengths], q: Tensor, k: Tensor
) -> list[list[int]]:
    """Lengths as pairs (of queries, of keys), refused if the tensors are shorter.

    >>> x = torch.ones(2, 1, 4, 8)
    >>> length_pairs(torch.tensor([4, 3]), x, x)
    [[4, 4], [3, 3]]
    """
    both = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    for x, of in zip(both, (q, k), strict=True):
        B, T = len(of), of.shape[2]
        ok = isinstance(x, Tensor) and x.shape == (B,) and not x.is_floating_point()
        ok = ok and bool(((x >= 0) & (x <= T)).all())
        what = f"a tensor of B = {B} ints in 0..{T}"
        remedy = "count the real tokens of each row; padding stands behind them"
        require(ok, "lengths", x, what, remedy)
    return torch.stack(both, dim=1).tolist()
