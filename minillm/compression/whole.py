"""A whole model in fewer bits, by any quantizer, and the bits that it then really has.

"Four bits" is a name. What a format takes for a weight are its codes, its scales, the
scales of its scales and whatever else has to be kept; embedding, head and norms stay in
floats and count as well. So nothing is computed here from a format's description: the
tensors that a model holds are counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from minillm.compression.calibration import Inputs, calibrate, inner_linears
from minillm.compression.linear import Held, HeldLinear, held_bytes
from minillm.errors import require

Quantizer = Callable[[Tensor, Inputs], Held]


class _Unseen:
    """Stands where inputs would be, and tells whoever looks at them."""

    def __getattr__(self, name: str) -> None:
        need = "text, as this quantizer looks at inputs"
        require(False, "batches", None, need, "give rows of tokens without padding")


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    quantizer: Quantizer,
    batches: Iterable[Int[Tensor, "B T"]] | None = None,
    targets: str | tuple[str, ...] = "",
) -> nn.Module:
    """Hold the weights of a model's linear layers in another format.

    Args:
        model: changed in place; embedding, head and norms stay as they are.
        quantizer: takes a layer's weight and its inputs, gives what is held:
            ``lambda w, x: quantize_nf4(w)``, ``lambda w, x: gptq(w, x.hessian)``,
            ``awq`` as it is.
        batches: text for quantizers that look at inputs; None for the others. Inputs
            are those of the model as it was, in all layers.
        targets: endings of the names of layers; all but the head if not given.

    Returns:
        the model.

    Raises:
        ValueError: no such layer, no batches for a quantizer that looks at inputs, as
            ``calibrate`` and the quantizer; the model is then unchanged.

    >>> from minillm.compression.nf4 import quantize_nf4
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=64))
    >>> model = quantize_model(model, lambda w, x: quantize_nf4(w))
    >>> stored_bits(model.layers).bits_per_weight < stored_bits(model).bits_per_weight
    True
    """
    found = inner_linears(model, targets)
    seen = {} if batches is None else calibrate(model, batches)
    made = {
        name: HeldLinear(layer, quantizer(layer.weight, seen.get(name, _Unseen())))
        for name, layer in found.items()
    }
    for name, layer in made.items():  # all or none
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model


@dataclass(frozen=True)
class Stored:
    """What a model, or a part of it, is and takes.

    Args:
        weights: numbers that it computes with, each counted once.
        bits: that are held for them.
    """

    weights: int
    bits: int

    @property
    def bits_per_weight(self) -> float:
        """The only number of bits that can be compared."""
        return self.bits / max(self.weights, 1)


def stored_bits(model: nn.Module) -> Stored:
    """Count the weights of a model and the bits of all tensors that it holds.

    >>> stored_bits(nn.Linear(3, 2))
    Stored(weights=8, bits=256)
    """
    quantized = [m for m in model.modules() if isinstance(m, HeldLinear)]
    plain = {p.data_ptr(): p.numel() for p in model.parameters()}
    biases = [m.bias.numel() for m in quantized if m.bias is not None]
    sizes = [m.in_features * m.out_features for m in quantized]
    weights = sum(plain.values()) + sum(biases) + sum(sizes)
    return Stored(weights, 8 * held_bytes(model))
