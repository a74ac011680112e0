"""A linear layer whose weight is held in four bits, and put together when it is needed.

Between two calls only codes and scales exist; for the product the weight is made again,
in the type of the input. So memory falls to a seventh of float32 and arithmetic stays
what it was: this saves bytes, not operations.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.compression.nf4 import FourBit, NestedScales, dequantize_nf4, quantize_nf4
from minillm.errors import require


class NF4Linear(nn.Module):
    """A frozen linear layer in NF4.

    Gradients pass through it to its input, and to nothing in it.

    Args:
        linear: the layer to take the weight from; it is not changed.
        block_size, double_quant: of ``quantize_nf4``.

    Raises:
        ValueError: as ``quantize_nf4``; a layer that is quantized already.

    >>> layer = NF4Linear(nn.Linear(128, 64))
    >>> layer(torch.randn(2, 128)).shape, layer.nbytes < 64 * 128 * 4 / 6
    (torch.Size([2, 64]), True)
    """

    def __init__(
        self, linear: nn.Linear, block_size: int = 64, double_quant: bool = True
    ):
        super().__init__()
        plain = isinstance(linear, nn.Linear)
        remedy = "quantize each layer once"
        require(plain, "linear", type(linear).__name__, "an nn.Linear", remedy)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        q = quantize_nf4(linear.weight, block_size, double_quant)
        self.block_size, self.double_quant = block_size, double_quant
        self.register_buffer("packed", q.packed)
        nested = isinstance(q.scales, NestedScales)
        scales = vars(q.scales) if nested else {"scales": q.scales}
        for name, part in scales.items():
            self.register_buffer(f"scale_{name}", part)
        self.register_buffer("levels", q.levels)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    @property
    def quantized(self) -> FourBit:
        """Codes and scales."""
        if self.double_quant:
            parts = (self.scale_codes, self.scale_absmax, self.scale_offset)
            scales = NestedScales(*parts)
        else:
            scales = self.scale_scales
        shape = torch.Size((self.out_features, self.in_features))
        return FourBit(self.packed, scales, self.levels, shape, self.block_size)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight that the codes stand for, made anew."""
        return dequantize_nf4(self.quantized)

    @property
    def nbytes(self) -> int:
        """Bytes that are held for the weight."""
        return self.quantized.nbytes

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _NF4Product.apply(x, self, bias)


class _NF4Product(torch.autograd.Function):
    """x W^T, keeping no copy of W for the backward pass: it is made again there."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: NF4Linear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return g @ ctx.layer.weight.to(g.dtype), None, None


def held_bytes(model: nn.Module) -> int:
    """Bytes that all parameters and buffers of a model really take, each counted once.

    >>> held_bytes(nn.Linear(3, 2))   # (6 + 2) floats
    32
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())
