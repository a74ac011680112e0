r"""Quantization-aware training: let the weights get used to the grid.

Rounded after training, a weight lands wherever the grid is. Rounded *during* training,
the others can make up for it. The forward pass uses the rounded weight; the backward
pass pretends that rounding is the identity, because its true derivative is 0 nearly
everywhere and would teach nothing (*straight-through*):

.. math:: y = x \, Q(W)^T, \qquad \frac{\partial L}{\partial W} :=
          \frac{\partial L}{\partial Q(W)}

The weights stay in floats and collect steps that are smaller than the grid's, until one
of them crosses to the next code. It is usually a short fine-tuning of a finished model,
and no training from the beginning.

Source: Bengio et al. 2013 (straight-through, arXiv:1308.3432), section 4; Jacob et al.
2018 (1712.05877), section 3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.compression.calibration import inner_linears
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.errors import require


def fake_quantize(weight: Float[Tensor, "M N"], grid: Grid) -> Float[Tensor, "M N"]:
    """The rounded weight, with the gradient of the weight itself.

    Scales are recomputed from the weight each time and get no gradient.

    Raises:
        ValueError: as ``quantize_rtn``.

    >>> weight = torch.tensor([[0.0, 1.2, 3.0]], requires_grad=True)
    >>> rounded = fake_quantize(weight, Grid(2, None))
    >>> rounded.sum().backward()
    >>> rounded.detach(), weight.grad
    (tensor([[0., 1., 3.]]), tensor([[1., 1., 1.]]))
    """
    rounded = quantize_rtn(weight, grid).weight().to(weight.dtype)
    return weight + (rounded - weight).detach()


class QATLinear(nn.Module):
    """A linear layer that computes with rounded weights and learns in floats.

    Args:
        linear: the layer; its parameters are shared and stay trainable.
        grid: bits, groups, symmetry.

    >>> layer = QATLinear(nn.Linear(64, 2), Grid(4, 32))
    >>> layer(torch.ones(1, 64)).shape
    torch.Size([1, 2])
    """

    def __init__(self, linear: nn.Linear, grid: Grid):
        super().__init__()
        grid.size(linear.in_features)  # groups that do not divide are refused here
        self.linear, self.grid = linear, grid
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        weight = fake_quantize(self.linear.weight, self.grid)
        return F.linear(x, weight, self.linear.bias)


def apply_qat(model: nn.Module, grid: Grid) -> nn.Module:
    """Let all linear layers but the head compute with rounded weights.

    Args:
        model: changed in place.
        grid: of all layers.

    Raises:
        ValueError: no linear layer, applied already, groups that do not divide a
            layer's rows; the model is then unchanged.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> type(apply_qat(model, Grid(4, None)).layers[0].mlp.up_proj).__name__
    'QATLinear'
    """
    plain = not any(isinstance(m, QATLinear) for m in model.modules())
    require(plain, "model", "in training", "plain", "finish_qat(model) first")
    found = inner_linears(model).items()
    made = {name: QATLinear(layer, grid) for name, layer in found}
    return _replace(model, made)


@torch.no_grad()
def finish_qat(model: nn.Module) -> nn.Module:
    """Put plain layers back whose weights lie on the grid.

    Raises:
        ValueError: a model without such layers.
    """
    modules = model.named_modules()
    found = {name: m for name, m in modules if isinstance(m, QATLinear)}
    remedy = "apply_qat(model, grid) first"
    require(len(found) > 0, "model", "plain", "one in training", remedy)
    for layer in found.values():
        layer.linear.weight.copy_(fake_quantize(layer.linear.weight, layer.grid))
    return _replace(model, {name: layer.linear for name, layer in found.items()})


def _replace(model: nn.Module, made: dict[str, nn.Module]) -> nn.Module:
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    return model
