"""The shape of a model, and what that shape costs.

Every number that describes a model before it is trained follows from its configuration:
how many parameters it has, how many floating-point operations a token takes, how many
bytes its key-value cache needs. This module derives them; tests compare the counts with
the real tensors, and notebooks with the models that you know by name.
"""

from dataclasses import dataclass

from minillm.errors import is_count, require, require_count, require_positive


@dataclass(frozen=True)
class GPTConfig:
    """A Llama-style decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention.

    Args:
        vocab_size: V, number of tokens.
        n_layer: number of blocks.
        n_head: H, query heads; each has D = n_embd / n_head dimensions.
        n_kv_head: key and value heads, each shared by n_head / n_kv_head query heads;
            ``None`` means one for each query head.
        n_embd: C, width of the residual stream.
        n_hidden: width of the feed-forward layer; ``None`` means 8/3 C, rounded up to a
            multiple of 32, which gives SwiGLU's three matrices the parameters of a
            classic MLP's two matrices of width 4C.
        context: most tokens that a sequence may have.
        rope_theta: base of RoPE's wavelengths.
        norm_eps: added to the mean square in RMSNorm.
        tied: whether the output head is the embedding matrix itself.
        causal: whether a token sees only what stands before it. False makes an encoder,
            which can fill gaps but neither generate nor be a Llama.

    Raises:
        ValueError: a size that is no positive integer or does not divide.

    Source: Touvron et al. 2023 (LLaMA), section 2.2; Shazeer 2020 (GLU variants).

    >>> GPTConfig(vocab_size=512, n_embd=96, n_head=3).head_dim
    32
    """

    vocab_size: int
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int | None = None
    n_embd: int = 128
    n_hidden: int | None = None
    context: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        C, H = self.n_embd, self.n_head
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", H)
        if self.n_hidden is None and is_count(C):
            object.__setattr__(self, "n_hidden", -(-8 * C // 3 // 32) * 32)
        others = ("rope_theta", "norm_eps", "tied", "causal")
        require_count(**{n: v for n, v in vars(self).items() if n not in others})
        require_positive(rope_theta=self.rope_theta, norm_eps=self.norm_eps)
        even = f"a multiple of 2 * n_head = {2 * H}"  # RoPE rotates pairs of dimensions
        require(C % (2 * H) == 0, "n_embd", C, even, "change either")
        kv, divisor = self.n_kv_head, f"a divisor of n_head = {H}"
        require(H % kv == 0, "n_kv_head", kv, divisor, "change either")

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head

    def require_causal(self) -> None:
        """Refuse an encoder where only a decoder makes sense."""
        remedy = "an encoder neither generates, nor caches, nor is a Llama"
        require(self.causal, "causal", self.causal, "True", remedy)


def count_parameters(config: GPTConfig) -> dict[str, int]:
    r"""Count parameters by part, without building the model.

    .. math:: N = VC \cdot (2 - tied) + L \, (2 C^2 + 2 C D H_{kv} + 3 C F + 2C) + C

    with F = ``n_hidden``. ``non_embedding`` is the N of scaling laws: it leaves out the
    embedding table but keeps an untied head, which multiplies.

    Returns:
        counts under ``embedding``, ``attention``, ``mlp``, ``norms``, ``head``,
        ``total`` and ``non_embedding``.

    >>> llama = GPTConfig(32_000, n_layer=32, n_head=32, n_embd=4096, n_hidden=11_008,
    ...                   context=2048, tied=False)
    >>> count_parameters(llama)["total"]
    6738415616
    """
    C, L = config.n_embd, config.n_layer
    kv_width = config.n_kv_head * config.head_dim
    parts = {
        "embedding": config.vocab_size * C,
        "attention": L * (2 * C * C + 2 * C * kv_width),
        "mlp": L * 3 * C * config.n_hidden,
        "norms": L * 2 * C + C,
        "head": 0 if config.tied else config.vocab_size * C,
    }
    total = sum(parts.values())
    return parts | {"total": total, "non_embedding": total - parts["embedding"]}


def flops_per_token(config: GPTConfig, T: int, training: bool = True) -> float:
    r"""Count floating-point operations for one token of a sequence of ``T`` tokens.

    Every weight that multiplies costs one multiplication and one addition; attention
    adds scores and averages over S keys, where S is (T + 1) / 2 on average in a causal
    model and T in an encoder:

    .. math:: forward = 2 N_{matmul} + 2 \cdot 2 L C S, \quad
              training = 3 \cdot forward

    The backward pass costs twice the forward one: a gradient for the input and one for
    the weight. Norms, RoPE and softmax are left out; they take time, not FLOPs. A tied
    head multiplies as much as an untied one, so V C counts in both.

    Differs from the paper: PaLM (Chowdhery et al. 2022, appendix B) counts attention as
    if no key were masked.

    >>> flops_per_token(GPTConfig(512, n_embd=96, n_head=3, n_layer=3), T=128) > 2e6
    True
    """
    require_count(T=T)
    parts = count_parameters(config)
    matmul = parts["attention"] + parts["mlp"] + config.vocab_size * config.n_embd
    keys = (T + 1) / 2 if config.causal else T
    forward = 2 * matmul + 4 * config.n_layer * config.n_embd * keys
    return forward * (3 if training else 1)


def kv_cache_bytes(config: GPTConfig, B: int, T: int, bytes_per_value: int = 4) -> int:
    """Bytes that the keys and values of ``B`` sequences of ``T`` tokens take.

    >>> kv_cache_bytes(GPTConfig(512, n_embd=96, n_head=3, n_layer=3), B=64, T=108)
    15925248
    """
    width = config.n_kv_head * config.head_dim
    return 2 * config.n_layer * B * T * width * bytes_per_value
