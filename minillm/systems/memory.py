r"""What a training run holds in memory, before it is started.

Four things: weights, gradients, the optimizer's state, and what the forward pass keeps
for the backward pass (activations). The first three follow from the number of
parameters P. Adam in plain float32 holds 4 + 4 + 8 bytes for each; in mixed precision 2
for a weight, 2 for a gradient and 12 for the optimizer: a copy of the weight and two
moments in float32. **Both are 16 P.** Mixed precision saves time and activations, and
no model states.

LoRA freezes the P and trains others, few enough that only the weights remain. QLoRA
makes those smaller. ZeRO shares out what n processes would otherwise each hold:

.. math:: \text{stage 1: } 4P + \frac{12P}{n}, \quad
          \text{stage 2: } 2P + \frac{14P}{n}, \quad
          \text{stage 3: } \frac{16P}{n}

so the first two end at a quarter and an eighth of the whole, however many take part.

Source: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), sections 3.1 and 5; Dettmers
et al. 2023 (QLoRA), section 3. Tests compare each number with tensors that exist.
"""

from dataclasses import dataclass

import torch

from minillm.errors import is_count, require, require_count, require_one_of
from minillm.finetuning.targets import Targets, select_linears
from minillm.model import GPT, GPTConfig, count_parameters

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Bytes:
    """Bytes for one value of each kind.

    Args:
        weight, gradient, optimizer: of a parameter that is trained.
        frozen: of one that is not.
    """

    weight: float = 4
    gradient: float = 4
    optimizer: float = 8
    frozen: float = 4


FLOAT32 = Bytes()  # also with autocast, which casts on the way
MIXED = Bytes(2, 2, 12, 2)


@dataclass(frozen=True)
class ModelStates:
    """Bytes in one process, before any activation."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer


def model_states(
    config: GPTConfig,
    method: str = "full",
    per: Bytes = FLOAT32,
    rank: int = 8,
    targets: Targets = "all",
    stage: int = 0,
    processes: int = 1,
) -> ModelStates:
    """Bytes of weights, gradients and optimizer in each process.

    Args:
        config: of the model.
        method: ``"full"``, ``"lora"`` or ``"qlora"`` (the blocks' linear layers in NF4
            with double quantization; embedding, head and norms as they are).
        per: bytes for each value; a LoRA is usually trained in float32 whatever the
            base is: ``Bytes(frozen=2)``.
        rank, targets: of the LoRA.
        stage: of ZeRO; 0 shares nothing, 1 the optimizer, 2 also gradients, 3 all.
        processes: n.

    Raises:
        ValueError: an unknown method or stage, sizes that are no counts, a target that
            no layer has.

    Left out: a counter of 4 bytes for each tensor in torch's Adam; what is padded where
    n does not divide.

    >>> seven = GPTConfig(32_000, n_layer=32, n_head=32, n_embd=4096, n_hidden=11_008,
    ...                   context=2048, tied=False)
    >>> for stage in range(4):   # gigabytes on each of four processes
    ...     states = model_states(seven, per=MIXED, stage=stage, processes=4)
    ...     print(round(states.total / 1e9))
    108
    47
    37
    27
    >>> round(model_states(seven, "lora", Bytes(frozen=2)).total / 1e9, 1)
    13.8
    """
    require_one_of(METHODS, method=method)
    require_one_of(range(4), stage=stage)
    require_count(rank=rank, processes=processes)
    total = count_parameters(config)["total"]
    if method == "full":
        trained, frozen = total, 0.0
    else:
        trained = sum(rank * (i + o) for o, i in linear_shapes(config, targets))
        frozen = total * per.frozen
    if method == "qlora":
        sizes = [o * i for o, i in linear_shapes(config)]
        frozen += sum(map(nf4_bytes, sizes)) - sum(sizes) * per.frozen
    shares = [processes if stage >= least else 1 for least in (3, 2, 1)]
    return ModelStates(
        (frozen + trained * per.weight) / shares[0],
        trained * per.gradient / shares[1],
        trained * per.optimizer / shares[2],
    )


def linear_shapes(config: GPTConfig, targets: Targets = "all") -> list[torch.Size]:
    """The shapes, (out, in), of the linear layers that are named.

    >>> [tuple(s) for s in linear_shapes(GPTConfig(64, n_layer=1), ("up_proj",))]
    [(352, 128)]
    """
    with torch.device("meta"):  # shapes only: 70 billion parameters cost nothing
        model = GPT(config)
    return [layer.weight.shape for layer in select_linears(model, targets).values()]


def nf4_bytes(size: int, block_size: int = 64) -> int:
    """Bytes that so many weights take in NF4 with double quantization.

    Half a byte each, a byte for the scale of a block, and for the scales four bytes per
    256 and their mean.

    >>> nf4_bytes(128 * 128) * 8 / 128**2   # 4.127 with many weights
    4.12890625
    """
    require_count(size=size, block_size=block_size)
    blocks = -(-size // block_size)
    return -(-size // 2) + blocks + 4 * -(-blocks // 256) + 4


def activation_bytes(
    config: GPTConfig, B: int, T: int, checkpoint_every: int | None = None
) -> int:
    r"""Bytes that a forward pass and its loss keep for the backward pass.

    With C = ``n_embd``, K the width of all keys, F = ``n_hidden``, H heads and V
    words, in numbers for each of the B T positions:

    .. math:: L \, (7 C + 3 K + 4 F + H + 2) + 2 C + V + 1

    A block keeps: the stream and its normalised copy, twice, with a root mean square
    each (4 C + 2); queries and keys before and after RoPE, values (2 C + 3 K); what
    attention gives and the logarithm of its sums (C + H), but not its T x T weights,
    which are made again tile by tile; gate, its SiLU, up, and their product (4 F). The
    loss keeps one log-probability for each word of the vocabulary.

    With checkpoints only the stream before every ``checkpoint_every``-th block is kept;
    the rest is computed again, and then that many blocks exist in full.

    Args:
        config: of a causal model in float32, all trained, without padding.
        B, T: rows and their length.
        checkpoint_every: see ``checkpointing``; ``None`` without.

    Raises:
        ValueError: sizes that are no counts.

    Differs from the paper: Korthikanti et al. 2022 (arXiv:2205.05198), equation 2, keep
    attention's weights, 5 H T numbers a position; theirs is a GPT-2 in half precision.

    >>> activation_bytes(GPTConfig(512, n_layer=6), B=32, T=128) / 2**20
    264.64...
    """
    require_count(B=B, T=T)
    ok = checkpoint_every is None or is_count(checkpoint_every)
    remedy = "1 keeps the input of each block"
    require(ok, "checkpoint_every", checkpoint_every, "None or a count", remedy)
    C, K, L = config.n_embd, config.n_kv_head * config.head_dim, config.n_layer
    block = 7 * C + 3 * K + 4 * config.n_hidden + config.n_head + 2
    kept = L * block if checkpoint_every is None else -(-L // checkpoint_every) * C
    numbers = kept + 2 * C + config.vocab_size + 1
    return B * T * (4 * numbers + 2 * 8) + 4  # ids and targets; the mean's count
