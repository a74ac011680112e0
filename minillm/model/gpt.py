"""The whole model: embed, a stack of blocks, norm, and a score for every next token.

    x = embedding[tokens]                        B T C
    for each block:  x = x + attention(norm(x)); x = x + swiglu(norm(x))
    logits = norm(x) @ head                      B T V

Names and layout are those of transformers' Llama, so that weights pass both ways
without a permutation (huggingface.py).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.errors import require, require_mask
from minillm.model import attention
from minillm.model.config import GPTConfig
from minillm.model.layers import RMSNorm, SwiGLU


class Block(nn.Module):
    """One pre-norm block: attention, then the feed-forward layer."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = attention.Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Float[Tensor, "B T C"], *past) -> Float[Tensor, "B T C"]:
        """Add both branches; ``past``: rotations, mask and cache, for attention."""
        x = x + self.self_attn(self.input_layernorm(x), *past)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """A decoder-only language model, or an encoder if its config is not causal.

    Args:
        config: its shape.

    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 64])
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight
        # No buffer: .to(bfloat16) would make it real, cosines where rotations were.
        with torch.device("cpu"):  # even where the weights get no memory yet
            sizes = (config.head_dim, config.context, config.rope_theta, config.n_head)
            self.rotations = attention.rope_rotations(*sizes)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Draw small weights; branches that add to the stream start smaller still.

        2L of them add up, so each gets 1 / sqrt(2L) of the usual deviation and the
        stream keeps its scale at any depth (Radford et al. 2019, section 2.3).
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Block):
            std = 0.02 / math.sqrt(2 * self.config.n_layer)
            nn.init.normal_(module.self_attn.o_proj.weight, std=std)
            nn.init.normal_(module.mlp.down_proj.weight, std=std)

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B S"] | None = None,
        cache: attention.KVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the normalised residual stream above the last block.

        Args:
            tokens: ids; with a cache, only those that it has not seen.
            mask: True at real tokens, over past and present (S of them). Padding may
                stand left or right; on the right a causal model needs no mask at all,
                but an encoder does.
            cache: keys and values of the past; extended by this call.

        Raises:
            ValueError: tokens that are no (B, T) ints, a sequence longer than the
                context, a mask of another shape.
        """
        past = cache.length if cache is not None else 0
        self._check(tokens, mask, past)
        T, S = tokens.shape[1], past + tokens.shape[1]
        self.rotations = self.rotations.to(tokens.device)
        rotations = self.rotations[past:S]
        if mask is not None:
            rotations = self.rotations[attention.positions(mask)[:, past:]]
        seen = None  # plain causal, or all of it: the fast path
        if mask is not None or (past > 0 and T > 1):
            causal = self.config.causal
            seen = attention.attention_mask(mask, T, S, tokens.device, causal)
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, rotations, seen, cache)
        if cache is not None:
            cache.length = S
        return self.norm(x)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B S"] | None = None,
        cache: attention.KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Return for each position the logits of the next token; see ``hidden``."""
        return self.lm_head(self.hidden(tokens, mask, cache))

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict as files hold it: a head that is tied stands in once.

        >>> "lm_head.weight" in GPT(GPTConfig(64, tied=True)).weights()
        False
        """
        weights = self.state_dict()
        if self.config.tied:
            del weights["lm_head.weight"]
        return weights

    def _check(self, tokens: Tensor, mask: Tensor | None, past: int) -> None:
        """Refuse what would fail later with a message about something else."""
        whole = tokens.dtype in (torch.int64, torch.int32)  # what nn.Embedding takes
        ok = tokens.dim() == 2 and tokens.numel() > 0 and whole
        require(ok, "tokens", tokens, "(B, T) of int64", "B and T are at least 1")
        S, room = past + tokens.shape[1], self.config.context
        remedy = "shorten the sequence or build the model with a larger context"
        require(room >= S, "sequence length", S, f"in 1..{room}", remedy)
        require_mask(mask, (len(tokens), S))
