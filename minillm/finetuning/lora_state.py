r"""A LoRA is a small thing that can be taken out, put in, and added to others.

One base in memory, many adapters of a few hundred kilobytes: that is how one server
speaks for a thousand customers. Three things can be done with the factors of adapters:

- *swap*: write another adapter's factors over these.
- *compose*: add changes, :math:`\sum_i w_i s_i B_i A_i`. The sum of two changes of rank
  r has rank 2r, so it is exact only if factors are *stacked*:
  :math:`B = [w_1 s_1 B_1, w_2 s_2 B_2]` beside :math:`A = [A_1; A_2]`.
- *average the factors*, which is cheaper and something else:
  :math:`(B_1 + B_2)(A_1 + A_2)` has cross terms that nobody trained.

Source: Hu et al. 2021, section 4.1, for swapping; Huang et al. 2023 (LoraHub,
arXiv:2307.13269), equation 1, for a composition that adds factors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minillm.errors import differences, require
from minillm.files import shapes
from minillm.finetuning.lora import LoRALinear, lora_layers
from minillm.finetuning.targets import put

State = dict[str, Tensor]


def lora_state(model: nn.Module) -> State:
    """Copies of all that was learned, by the names of layer and factor.

    >>> from minillm.finetuning.lora import apply_lora
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> list(lora_state(apply_lora(model, 2, targets="q_proj")))
    ['layers.0.self_attn.q_proj.lora_A', 'layers.0.self_attn.q_proj.lora_B']
    """
    return {
        f"{name}.{factor}": parameter.detach().clone()
        for name, layer in lora_layers(model).items()
        for factor, parameter in layer.named_parameters()
        if not factor.startswith("base.")
    }


@torch.no_grad()
def load_lora_state(model: nn.Module, state: State) -> nn.Module:
    """Swap: put an adapter's factors where another's are.

    Raises:
        ValueError: layers or shapes that do not fit, a model whose adapter is merged.
    """
    layers = lora_layers(model)
    merged = any(layer.plain is not None for layer in layers.values())
    require(not merged, "model", "merged", "unmerged", "unmerge(model) before swapping")
    wrong = differences(shapes(state), shapes(lora_state(model)))
    need = f"that of the same layers and ranks; differs in {[*wrong.items()][:3]}"
    remedy = "apply_lora with the settings of the adapter"
    require(not wrong, "state", f"{len(state)} tensors", need, remedy)
    for name, layer in layers.items():
        for factor, parameter in layer.named_parameters():
            if not factor.startswith("base."):
                parameter.copy_(state[f"{name}.{factor}"])
    return model


@torch.no_grad()
def compose_lora(
    model: nn.Module, states: Sequence[State], weights: Sequence[float]
) -> nn.Module:
    r"""Put the weighted sum of several adapters into a model, exactly, by stacking.

    .. math:: \Delta W = \sum_i w_i \, s \, B_i A_i, \qquad rank = \sum_i r_i

    Args:
        model: with a LoRA in the layers of the adapters; its factors are replaced, and
            its scaling is that of all of them.
        states: of ``lora_state``.
        weights: one for each; they need not sum to 1.

    Returns:
        the model, whose layers now have the sum of the ranks.

    Raises:
        ValueError: no adapter, unequal numbers, layers that differ, a DoRA: magnitudes
            do not add.
    """
    n, need = len(weights), f"one for each of {len(states)} adapters"
    require(n == len(states) > 0, "weights", n, need, "give as many of both")
    plain = all(set(s) == set(states[0]) for s in states) and not any(
        key.endswith("magnitude") for key in states[0]
    )
    require(plain, "states", "others", "LoRAs of the same layers", "compare their keys")
    for name, layer in lora_layers(model).items():
        A = torch.cat([state[f"{name}.lora_A"] for state in states])
        parts = zip(states, weights, strict=True)
        B = torch.cat([w * state[f"{name}.lora_B"] for state, w in parts], dim=1)
        # LoRALinear checks the rank, which may be too large for the layer by now.
        sum_ = LoRALinear(layer.base, len(A), layer.scaling * len(A), layer.dropout)
        sum_.lora_A.data, sum_.lora_B.data = A, B
        put(model, name, sum_)
    return model
