r"""What goes into the layers: the data that GPTQ and AWQ look at.

A weight matters as much as what it is multiplied by. Some rows of text are read by the
model as it is, and of the inputs x of each linear layer two sums are kept,

.. math:: H = \frac{2}{n} \sum x x^T, \qquad a_j = \frac{1}{n} \sum |x_j|

H is the Hessian of the squared error of the layer's output, in each row of its weight,
and is all that GPTQ needs. AWQ needs a, and H again: the error of any change D of the
weight is

.. math:: \frac{1}{n} \sum \|D x\|^2 = \tfrac{1}{2} \, tr(D H D^T)

so no input has to be kept. The text should be like what the model will read: what never
occurs in it is not protected.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillm.errors import require


@dataclass
class Inputs:
    """What a layer was given, summed up over n inputs; see above."""

    hessian: Float[Tensor, "N N"]
    mean: Float[Tensor, " N"]
    n: int = 0

    def add(self, x: Float[Tensor, "... N"]) -> None:
        """Take more inputs into the means."""
        x = x.detach().flatten(0, -2).to(self.hessian.dtype)
        m = self.n + len(x)
        self.hessian += (2 * x.T @ x - len(x) * self.hessian) / m
        self.mean += (x.abs().sum(0) - len(x) * self.mean) / m
        self.n = m

    def error(self, change: Float[Tensor, "M N"]) -> float:
        """Mean squared change of the layer's output, summed over its M outputs."""
        D = change.to(self.hessian.dtype)
        return ((D @ self.hessian) * D).sum().item() / 2


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Int[Tensor, "B T"]]
) -> dict[str, Inputs]:
    """Let a model read, and sum up the inputs of its linear layers.

    Args:
        model: of floats; unchanged.
        batches: rows of tokens without padding.

    Returns:
        for each linear layer but the head, by name.

    Raises:
        ValueError: no batch, no linear layer.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> calibrate(model, [torch.tensor([[1, 2, 3]])])["layers.0.mlp.up_proj"].n
    3
    """
    layers, found, hooks = inner_linears(model), {}, []
    for name, layer in layers.items():
        N, like = layer.in_features, layer.weight
        zeros = torch.zeros(N, N, device=like.device, dtype=torch.float64)
        found[name] = Inputs(zeros, zeros[0].clone())
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, given, seen=found[name]: seen.add(given[0])
            )
        )
    was_training = model.training
    model.eval()
    try:
        for tokens in batches:
            model(tokens)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    n = max(seen.n for seen in found.values())
    require(n > 0, "batches", n, "at least one", "give some text to calibrate with")
    return found


def inner_linears(
    model: nn.Module, endings: str | tuple[str, ...] = ""
) -> dict[str, nn.Linear]:
    """The plain linear layers but the head whose names end so, by name.

    Raises:
        ValueError: there is none, perhaps because they are quantized already.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    found = {name: module for name, module in layers.items() if name.endswith(endings)}
    known = sorted({name.split(".")[-1] for name in layers})
    require(len(layers) > 0, "model", "no nn.Linear", "one with some", "quantize once")
    require(len(found) > 0, "targets", endings, f"among {known}", "name some of these")
    return found
