"""Attention: every token asks a question of all tokens before it.

For one head with queries q, keys k and values v of D dimensions,

    y_t = sum_s softmax_s(q_t . k_s / sqrt(D)) v_s       over s <= t,

and RoPE turns q and k by an angle that grows with the position, so that the score
depends on how far apart two tokens are and not on where they stand. During generation
the keys and values of the past are kept (KVCache): they never change, because no token
looks ahead.

Sources: Vaswani et al. 2017, section 3.2; Su et al. 2021 (RoPE), section 3.2; Ainslie
et al. 2023 (grouped-query attention).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from minillm.errors import require
from minillm.model.config import GPTConfig
from minillm.model.layers import at_least_float32


def rope_rotations(
    D: int, T: int, theta: float = 1e4, H: int = 1
) -> Complex[Tensor, "T H D/2"]:
    r"""The rotation of each position and each pair of dimensions, as a complex number.

    .. math:: R_{t,i} = e^{\mathrm{i} \, t \, \theta^{-2i/D}}

    The first pair turns by one radian a token, the last one by about 1/theta. All heads
    turn alike; a copy for each of them makes the product in ``apply_rope`` several
    times as fast, because nothing has to be broadcast.

    >>> rope_rotations(D=4, T=2)[0]
    tensor([[1.+0.j, 1.+0.j]])
    """
    # In float64: at position 100,000 a float32 angle is wrong in its third digit.
    frequency = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(T, dtype=torch.float64), frequency)
    one_head = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    return one_head[:, None].repeat(1, H, 1)


def apply_rope(
    x: Float[Tensor, "B T H D"], rotations: Complex[Tensor, "... T H D/2"]
) -> Float[Tensor, "B T H D"]:
    """Turn each pair (x_i, x_{i + D/2}) of each head by its position's angle.

    This is the rotate-half pairing of transformers' Llama. The result has both members
    of a pair side by side: the same permutation for queries and keys, so no score
    changes, and one complex product replaces four real ones and a concatenation.

    Args:
        x: queries or keys.
        rotations: from ``rope_rotations``, one row for each position of x, for one
            head or for at least as many as x has; with a leading dimension B where rows
            have positions of their own.

    Raises:
        ValueError: D is odd.

    >>> x = torch.randn(1, 3, 2, 4)
    >>> y = apply_rope(x, rope_rotations(4, 3))
    >>> bool(torch.allclose(x.norm(dim=-1), y.norm(dim=-1)))   # turning keeps lengths
    True
    """
    H, D = x.shape[-2:]
    require(D % 2 == 0, "D", D, "even", "RoPE turns pairs of dimensions")
    first, second = at_least_float32(x).chunk(2, dim=-1)
    pairs = torch.complex(first, second)  # B T H D/2
    turned = torch.view_as_real(pairs * rotations[..., :H, :])  # B T H D/2 2
    return turned.flatten(-2).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, for every layer, in one allocation.

    Args:
        config: of the model.
        B: number of sequences.
        T: room for so many tokens.
        like: a tensor whose dtype and device are taken.
    """

    def __init__(self, config: GPTConfig, B: int, T: int, like: Tensor):
        config.require_causal()  # else new tokens would change what was kept
        shape = (2, config.n_layer, B, config.n_kv_head, T, config.head_dim)
        self.kv = like.new_zeros(shape)
        self.length = 0  # tokens that all layers have seen

    def extend(
        self, layer: int, k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"]]:
        """Append new keys and values of one layer; return all S of them.

        Raises:
            ValueError: the cache is full, or made for another number of sequences.
        """
        start, end = self.length, self.length + k.shape[2]
        B, T = self.kv.shape[2], self.kv.shape[4]
        require(len(k) == B, "tokens", len(k), f"{B} rows like the cache", "match them")
        require(end <= T, "tokens", end, f"at most {T}, the cache's T", "enlarge T")
        self.kv[0, layer, :, :, start:end] = k
        self.kv[1, layer, :, :, start:end] = v
        return self.kv[0, layer, :, :, :end], self.kv[1, layer, :, :, :end]


def attention_mask(
    mask: Bool[Tensor, "B S"] | None,
    T: int,
    S: int,
    device: torch.device,
    causal: bool = True,
) -> Bool[Tensor, "B|1 1 T S"]:
    """Who may look at whom: the last T of S tokens at real tokens not after themselves.

    A padding token may look at itself: a row with nothing to look at would divide by
    zero, and its NaN would spread to the weights through the gradient.

    Args:
        mask: True at real tokens; ``None`` if all are.
        causal: False drops "not after themselves".

    >>> attention_mask(torch.tensor([[False, True, True]]), 3, 3, "cpu").int()[0, 0]
    tensor([[1, 0, 0],
            [0, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    seen = torch.ones(T, S, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(S - T)
    if mask is None:
        return seen[None, None]
    itself = torch.eye(S, dtype=torch.bool, device=device)[S - T :]
    return ((seen & mask[:, None, :]) | itself)[:, None]


def positions(mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Number the real tokens of each row from 0, wherever its padding stands.

    >>> positions(torch.tensor([[False, False, True, True]]))
    tensor([[0, 0, 0, 1]])
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


class Attention(nn.Module):
    """Self-attention with RoPE and grouped key-value heads."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        C, D = config.n_embd, config.head_dim
        kv_width = config.n_kv_head * D
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, kv_width, bias=False)
        self.v_proj = nn.Linear(C, kv_width, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)
        self.head_dim, self.layer, self.causal = D, layer, config.causal

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotations: Complex[Tensor, "... T H D/2"],
        mask: Bool[Tensor, "B|1 1 T S"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        heads = (*x.shape[:2], -1, self.head_dim)  # B T H D
        q = apply_rope(self.q_proj(x).view(heads), rotations).transpose(1, 2)
        k = apply_rope(self.k_proj(x).view(heads), rotations).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        # No mask means plain causal, or in an encoder no limit; a single query may see
        # all keys. For several new tokens after others is_causal would put the triangle
        # in the wrong corner, so the model then passes a mask.
        causal = self.causal and mask is None and q.shape[2] > 1
        grouped = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, enable_gqa=grouped
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))  # B T C
