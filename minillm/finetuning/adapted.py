"""What all adapters of linear layers share: a frozen base, a place, a way to merge.

Parameter-efficient fine-tuning freezes the model and puts something small beside its
linear layers. For LoRA, DoRA and IA3 the sum of both is again a linear layer, so what
was learned can be folded into the weight: ``merge``. Then it costs nothing more.

    freeze everything, then replace the layers that are named, then train what is left

In this order. Frozen after they were added, the adapters would be frozen, too; and an
optimizer that was built before would go on moving the base.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.errors import require
from minillm.finetuning.targets import Targets, put, select_linears


class AdaptedLinear(nn.Module):
    """A linear layer that stays as it is, and what is learned around it.

    Subclasses say in ``merged`` what weight and bias the two are together.

    Args:
        base: the layer; its parameters are frozen here.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.plain: tuple[Tensor, Tensor | None] | None = None  # what merging replaced

    def merged(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """Weight and bias of the plain layer that does the same."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> None:
        """Fold what was learned into the base; a copy of the base is kept.

        Differs from PEFT: it subtracts to unmerge, and rounding errors stay behind.

        Raises:
            ValueError: merged already; twice would count what was learned twice.
        """
        remedy = "unmerge first"
        require(self.plain is None, "layer", "merged already", "unmerged", remedy)
        weight, bias = self.merged()
        self.plain = (self.base.weight.data, getattr(self.base.bias, "data", None))
        self.base.weight.data = weight.to(self.base.weight.dtype)
        if bias is not None:
            self.base.bias.data = bias.to(self.base.bias.dtype)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base back, bit for bit.

        Raises:
            ValueError: nothing was merged.
        """
        remedy = "merge first"
        require(self.plain is not None, "layer", "not merged", "merged", remedy)
        self.base.weight.data, bias = self.plain
        if bias is not None:
            self.base.bias.data = bias
        self.plain = None


def adapt(
    model: nn.Module, targets: Targets, make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Freeze a model and put ``make(layer)`` in the place of each layer that is named.

    Args:
        model: changed in place; parameters of earlier adapters stay trainable.
        targets: of ``select_linears``.
        make: the adapted layer for a plain one.

    Returns:
        the model.

    Raises:
        ValueError: as ``select_linears``, or as ``make``; the model is then unchanged.
    """
    made = {n: make(layer) for n, layer in select_linears(model, targets).items()}
    earlier = [m for m in model.modules() if isinstance(m, AdaptedLinear)]
    learning = [p for m in earlier for p in m.parameters() if p.requires_grad]
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    for name, layer in made.items():
        put(model, name, layer)
    return model


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model, by name.

    Raises:
        ValueError: there is none.
    """
    modules = model.named_modules()
    found = {name: m for name, m in modules if isinstance(m, AdaptedLinear)}
    remedy = "apply_lora(model, ...) or another adapter first"
    require(len(found) > 0, "model", "no adapted layer", "one with adapters", remedy)
    return found


def merge(model: nn.Module) -> nn.Module:
    """Fold all adapters into their layers; ``unmerge`` undoes it, bit for bit."""
    layers = adapted_layers(model).values()
    free = all(layer.plain is None for layer in layers)
    require(free, "model", "merged already", "unmerged", "unmerge first")
    for layer in sorted(layers, key=lambda layer: isinstance(layer.base, nn.Linear)):
        layer.merge()  # those that refuse come first, so that it is all or none
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Take all adapters out of their layers' weights again."""
    for layer in adapted_layers(model).values():
        layer.unmerge()
    return model


def unload(model: nn.Module) -> nn.Module:
    """Merge, and put plain layers in the place of adapted ones: a model as before.

    It can be saved, exported and adapted again; its parameters stay frozen.
    """
    for name, layer in adapted_layers(model).items():
        if layer.plain is None:
            layer.merge()
        put(model, name, layer.base)
    return model


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them.

    >>> model = nn.Linear(3, 2).requires_grad_(False)
    >>> count_trainable(model)
    (0, 8)
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
