r"""QLoRA: a LoRA on a base that is held in four bits.

.. math:: y = x \, dequantize(W_{NF4})^T + s \, x A^T B^T

The base is frozen, so it may be as coarse as the task allows; what is learned stays in
16 or 32 bits, since a step of a learning rate would round to nothing in four. Gradients
pass *through* the quantized weight to the layers below.

The adapter learns to make up for the rounding of *this* base. Merged into another one
(the 16-bit original), it is another function; and if the sum is quantized again, its
error is about as large as what was learned. So keep the two apart, or merge into
floats and say so.

**LoftQ** begins better: instead of B = 0 beside a rounded W it looks for a quantized Q
and a low-rank change that are together close to W, in turns:

.. math:: Q_t = quantize(W - s B_{t-1} A_{t-1}), \qquad
          B_t A_t = SVD_r(W - Q_t) / s

Source: Dettmers et al. 2023 (QLoRA, arXiv:2305.14314), equation 5; Li et al. 2023
(LoftQ, 2310.08659), algorithm 1. Differs from PEFT: it leaves s out of B A, so that its
layer begins at Q + s B A, and with s = 2 no closer to W than Q alone.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.compression.linear import NF4Linear
from minillm.compression.nf4 import dequantize_nf4, quantize_nf4
from minillm.errors import require, require_count, require_positive
from minillm.finetuning.lora import LoRALinear
from minillm.finetuning.targets import Targets, put, select_linears


class QLoRALinear(LoRALinear):
    """A LoRA beside a weight in NF4.

    Args:
        linear: the layer to take the weight from, or one that is in NF4.
        rank, alpha, dropout, rank_stabilized: of ``LoRALinear``.
        block_size, double_quant: of ``NF4Linear``.

    >>> layer = QLoRALinear(nn.Linear(128, 64), rank=4, alpha=8)
    >>> layer(torch.randn(2, 128)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        linear: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rank_stabilized: bool = False,
        block_size: int = 64,
        double_quant: bool = True,
    ):
        if not isinstance(linear, NF4Linear):
            linear = NF4Linear(linear, block_size, double_quant)
        super().__init__(linear, rank, alpha, dropout, rank_stabilized)

    def merge(self) -> None:
        """Refused: the sum is no four-bit weight. Use ``merged_floats``."""
        remedy = "merge into floats with merged_floats(model)"
        require(False, "layer", "in four bits", "of floats", remedy)


def apply_qlora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Targets = "all",
    quantized: Targets = "all",
    double_quant: bool = True,
    loftq: int = 0,
) -> nn.Module:
    """Hold a model's layers in NF4 and give those that are named a LoRA.

    Args:
        model: changed in place; embedding, head and norms stay as they are.
        rank, alpha, targets: of ``apply_lora``.
        quantized: the layers that are held in four bits.
        double_quant: of ``quantize_nf4``.
        loftq: rounds of LoftQ for the start; 0 begins with B = 0.

    Returns:
        the model.

    Raises:
        ValueError: as ``apply_lora`` and ``quantize_nf4``.
    """
    adapted, held = (select_linears(model, names) for names in (targets, quantized))
    made = {}
    for name, layer in (held | adapted).items():
        lora = (rank, alpha) if name in adapted else None
        rounds = loftq if name in held else 0
        start = None
        if lora and rounds:
            start = loftq_start(layer.weight, rank, alpha / rank, rounds, double_quant)
        base = _four_bits(layer, start, double_quant) if name in held else layer
        made[name] = _with_lora(base, lora, start)
    model.requires_grad_(False)  # before the adapters are in it
    for name, layer in made.items():  # all or none
        put(model, name, layer)
    return model


def _four_bits(layer: nn.Linear, start: tuple | None, double_quant: bool) -> NF4Linear:
    if start is not None:
        layer = copy.deepcopy(layer)
        layer.weight.data = start[0].to(layer.weight.dtype)
    return NF4Linear(layer, double_quant=double_quant)


def _with_lora(base: nn.Module, lora: tuple | None, start: tuple | None) -> nn.Module:
    if lora is None:
        return base
    layer = (QLoRALinear if isinstance(base, NF4Linear) else LoRALinear)(base, *lora)
    if start is not None:
        layer.lora_A.data, layer.lora_B.data = start[1:]
    return layer


@torch.no_grad()
def loftq_start(
    weight: Float[Tensor, "out in"],
    rank: int,
    scaling: float = 1.0,
    rounds: int = 5,
    double_quant: bool = False,
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """What to quantize, A and B, so that their sum is close to the weight.

    Args:
        weight: W.
        rank: r, of the change.
        scaling: s, by which the layer multiplies B A.
        rounds: T; one is quantizing and adding the best change to it.
        double_quant: of ``quantize_nf4``.

    Returns:
        a weight that is quantized to Q, A and B.

    Raises:
        ValueError: no rounds, a rank or scaling out of range, as ``quantize_nf4``.

    >>> W = torch.randn(64, 64)
    >>> target, A, B = loftq_start(W, rank=16)
    >>> Q = dequantize_nf4(quantize_nf4(target))
    >>> bool((W - Q - B @ A).norm() < (W - dequantize_nf4(quantize_nf4(W))).norm())
    True
    """
    require_count(rank=rank, rounds=rounds)
    require_positive(scaling=scaling)
    need, remedy = f"at most min{tuple(weight.shape)}", "choose a smaller rank"
    require(rank <= min(weight.shape), "rank", rank, need, remedy)
    W = weight.detach().float()
    change = torch.zeros_like(W)
    for _ in range(rounds):
        target = W - change
        Q = dequantize_nf4(quantize_nf4(target, double_quant=double_quant))
        U, S, V = torch.linalg.svd(W - Q, full_matrices=False)
        root = S[:rank].sqrt()
        B, A = U[:, :rank] * root, root[:, None] * V[:rank]
        change = B @ A
    return target, A / scaling**0.5, B / scaling**0.5


@torch.no_grad()
def merged_floats(model: nn.Module) -> nn.Module:
    """A plain model of floats that does what base and adapter do together.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = apply_qlora(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)), rank=2)
    >>> type(merged_floats(model).layers[0].mlp.up_proj).__name__
    'Linear'
    """
    plain = copy.deepcopy(model)
    quantized = [
        (name, layer)
        for name, layer in plain.named_modules()
        if isinstance(layer, NF4Linear | LoRALinear) and not name.endswith(".base")
    ]
    remedy = "apply_qlora(model, ...) first"
    require(len(quantized) > 0, "model", "plain", "one with adapters", remedy)
    for name, layer in quantized:
        lora = isinstance(layer, LoRALinear)
        if lora and layer.plain is not None:
            layer.unmerge()  # what was learned would count twice
        base = layer.base if lora else layer
        weight = layer.merged()[0] if lora else base.weight
        linear = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        linear.weight.data = weight
        if base.bias is not None:
            linear.bias.data = base.bias.data
        put(plain, name, linear.requires_grad_(False))
    return plain
