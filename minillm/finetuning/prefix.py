r"""Prefix tuning: keys and values that no token has, in front of every layer.

.. math:: attention(q, [P_K; K], [P_V; V])

A prompt steers a frozen model only through the keys and values that its tokens leave in
each layer. So learn these directly, P of them a layer: more than any text could say,
with 2 L P C_{kv} numbers, none of which is a weight. The price is paid at each token,
which has P more keys to look at, and in the context that is left.

Trained directly the prefixes are unstable (Li and Liang saw it, at their size), so they
can be *made* by a small network during training, which is thrown away afterwards:

    P_K, P_V = MLP(embedding)      ``hidden`` is its width; ``freeze_prefix`` ends it

Without the network, at every layer, this is P-tuning v2.

Source: Li and Liang 2021 (arXiv:2101.00190), sections 4.1 to 4.3; Liu et al. 2021
(P-tuning v2, 2110.07602), section 3.2. Differs from PEFT: tokens keep their positions,
counted from 0; there they are counted from P. Since prefix keys are not rotated, this
is the same up to a rotation of the learned keys.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from minillm.errors import require, require_count
from minillm.finetuning.targets import put
from minillm.model.attention import Attention, KVCache, apply_rope


class PrefixAttention(nn.Module):
    """Attention that sees P learned keys and values before all others.

    Args:
        attention: the plain one, shared and not changed.
        kv: (2, H, P, D): keys and values of the prefix, learned.
    """

    def __init__(self, attention: Attention, kv: Float[Tensor, "2 H P D"]):
        super().__init__()
        self.attention, self.kv = attention, nn.Parameter(kv)

    def prefix(self) -> Float[Tensor, "2 H P D"]:
        """Keys and values of the prefix."""
        return self.kv

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rotations: Complex[Tensor, "... T H D/2"],
        mask: Bool[Tensor, "B|1 1 T S"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        plain, (B, T), D = self.attention, x.shape[:2], self.attention.head_dim
        heads = (B, T, -1, D)
        q = apply_rope(plain.q_proj(x).view(heads), rotations).transpose(1, 2)
        k = apply_rope(plain.k_proj(x).view(heads), rotations).transpose(1, 2)
        v = plain.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:  # which never holds the prefix
            k, v = cache.extend(plain.layer, k, v)
        S = k.shape[2]
        if mask is None:  # then torch's is_causal would begin at the prefix
            mask = torch.ones(1, 1, T, S, dtype=torch.bool, device=x.device).tril(S - T)
        K, V = (part.expand(B, -1, -1, -1).to(k.dtype) for part in self.prefix())
        mask = F.pad(mask, (K.shape[2], 0), value=True)
        k, v = torch.cat([K, k], dim=2), torch.cat([V, v], dim=2)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1]
        )
        return plain.o_proj(y.transpose(1, 2).flatten(2))


class MadePrefix(PrefixAttention):
    """A prefix that a small network makes of P embeddings."""

    def __init__(self, attention: Attention, shape: tuple[int, ...], hidden: int):
        super().__init__(attention, torch.empty(0))
        _, H, P, D = shape
        self.shape = shape
        self.kv = nn.Parameter(torch.randn(P, hidden) * 0.02)
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * H * D)
        )

    def prefix(self) -> Float[Tensor, "2 H P D"]:
        _, H, P, D = self.shape
        return self.network(self.kv).view(P, 2, H, D).permute(1, 2, 0, 3)


def apply_prefix(
    model: nn.Module, length: int = 8, hidden: int | None = None
) -> nn.Module:
    """Freeze a model and put a prefix before the keys and values of every layer.

    Args:
        model: plain and causal; changed in place.
        length: P.
        hidden: width of the network that makes the prefix while it is trained; None
            learns the prefix itself.

    Raises:
        ValueError: a length that is no count, an encoder, a model that has a prefix.

    >>> from minillm.finetuning.adapted import count_trainable
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    >>> count_trainable(apply_prefix(model, length=3))[0] == 2 * 2 * 3 * 16
    True
    """
    require_count(length=length, hidden=1 if hidden is None else hidden)
    config = model.config
    config.require_causal()
    plain = all(isinstance(block.self_attn, Attention) for block in model.layers)
    require(plain, "model", "adapted", "with plain attention", "take a plain copy")
    shape = (2, config.n_kv_head, length, config.head_dim)
    model.requires_grad_(False)
    for i, block in enumerate(model.layers):
        attention = block.self_attn
        like = attention.k_proj.weight
        kv = 0.02 * torch.randn(shape, dtype=like.dtype, device=like.device)
        made = None if hidden is None else MadePrefix(attention, shape, hidden)
        made = PrefixAttention(attention, kv) if made is None else made.to(like)
        put(model, f"layers.{i}.self_attn", made)
    return model


@torch.no_grad()
def freeze_prefix(model: nn.Module) -> nn.Module:
    """Keep the prefixes that the networks make, and throw the networks away.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> before = apply_prefix(model, hidden=32)(tokens)
    >>> bool(torch.allclose(freeze_prefix(model)(tokens), before))
    True
    """
    for i, block in enumerate(model.layers):
        made = block.self_attn
        if isinstance(made, MadePrefix):
            kv = made.prefix().contiguous().clone()
            put(model, f"layers.{i}.self_attn", PrefixAttention(made.attention, kv))
    return model
