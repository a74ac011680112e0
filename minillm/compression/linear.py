"""A linear layer whose weight is held in few bits, and put together when it is needed.

Between two calls only codes and scales exist; for the product the weight is made again,
in the type of the input. So in four bits memory falls to a seventh of float32 and
arithmetic stays what it was: this saves bytes, not operations.

Every quantizer here returns a frozen dataclass of tensors that knows its ``weight()``.
The layer takes them apart into buffers, so that they are saved, moved and counted like
those of any other layer.
"""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.compression.nf4 import quantize_nf4
from minillm.errors import require

SHARED = {"levels"}  # of a codebook: everybody's, and held once


class Held(Protocol):
    """What a quantizer returns."""

    def weight(self) -> Float[Tensor, "out in"]:
        """What the codes stand for."""


class HeldLinear(nn.Module):
    """A frozen linear layer whose weight is held as something smaller.

    Gradients pass through it to its input, and to nothing in it.

    Args:
        linear: the layer to take sizes and bias from; it is not changed.
        held: its weight, quantized.

    Raises:
        ValueError: a layer that is quantized already, what is held is another's.

    >>> from minillm.compression.uniform import Grid, quantize_rtn
    >>> linear = nn.Linear(128, 64)
    >>> layer = HeldLinear(linear, quantize_rtn(linear.weight, Grid(3, 64)))
    >>> layer.nbytes * 8 / (128 * 64)   # 3 + (16 + 3) / 64
    3.296875
    """

    def __init__(self, linear: nn.Linear, held: Held):
        super().__init__()
        require_plain(linear)
        shape = tuple(linear.weight.shape)
        fits = is_dataclass(held) and held.weight().shape == shape
        remedy = "give what a quantizer made of this layer's weight"
        require(fits, "held", type(held).__name__, f"a weight of {shape}", remedy)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        each_tensor(self.register_buffer, held)
        self._plan = each_tensor(lambda _, t: t.to("meta"), held)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    @property
    def held(self) -> Held:
        """Codes and scales."""
        return each_tensor(lambda name, _: getattr(self, name), self._plan)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight that the codes stand for, made anew."""
        return self.held.weight()

    @property
    def nbytes(self) -> int:
        """Bytes that are held for the weight."""
        return sum(t.nbytes for name, t in self.named_buffers() if name != "bias")

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _HeldProduct.apply(x, self, bias)


class NF4Linear(HeldLinear):
    """A frozen linear layer in NF4.

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
        require_plain(linear)
        super().__init__(linear, quantize_nf4(linear.weight, block_size, double_quant))


def require_plain(linear: nn.Module) -> None:
    """Require an nn.Linear, which is not quantized yet."""
    plain, remedy = isinstance(linear, nn.Linear), "quantize each layer once"
    require(plain, "linear", type(linear).__name__, "an nn.Linear", remedy)


def each_tensor(change: Callable, held: Held, path: str = "held") -> Held:
    """A copy of a dataclass with ``change(name, tensor)`` for each tensor in it.

    >>> from minillm.compression.int8 import quantize_int8
    >>> each_tensor(lambda name, t: name, quantize_int8(torch.eye(2)))
    Int8(codes='held_codes', steps='held_steps')
    """
    made = {}
    for name, value in vars(held).items():
        place = f"{path}_{name}"
        if isinstance(value, Tensor) and name not in SHARED:
            made[name] = change(place, value)
        elif is_dataclass(value):
            made[name] = each_tensor(change, value, place)
    return replace(held, **made)


class _HeldProduct(torch.autograd.Function):
    """x W^T, keeping no copy of W for the backward pass: it is made again there."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: HeldLinear, bias: Tensor | None) -> Tensor:
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
