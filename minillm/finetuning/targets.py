"""Which layers are to be adapted: linear ones, by the ends of their names."""

from collections.abc import Sequence

from torch import nn

from minillm.errors import require

Targets = str | Sequence[str]
ALL = "all"  # every linear layer of the blocks; the head is none of them


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers that may be adapted, by name; adapters' own are left out.

    >>> list(linear_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    ['0']
    """
    modules = dict(model.named_modules())
    # an adapted layer knows what it is when merged; what it is made of is its own
    inside = tuple(f"{name}." for name, m in modules.items() if hasattr(m, "merged"))
    return {
        name: module
        for name, module in modules.items()
        if hasattr(module, "in_features") and not name.startswith(inside)
    }


def select_linears(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The linear layers whose names end in one of the targets.

    Args:
        model: a plain model, or one with adapted layers elsewhere.
        targets: endings such as ``("q_proj", "v_proj")`` or ``"layers.0.mlp.up_proj"``,
            or ``"all"`` for every one but the head.

    Raises:
        ValueError: a target that no layer has; the message lists what there is. The
            head of a tied model, since the embedding would change with it.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    >>> list(select_linears(model, "q_proj"))
    ['layers.0.self_attn.q_proj', 'layers.1.self_attn.q_proj']
    """
    layers = linear_layers(model)
    if targets == ALL:
        found = {name: m for name, m in layers.items() if name != "lm_head"}
        require(len(found) > 0, "model", "no linear layer", "one with some", "check it")
        return found
    endings = [targets] if isinstance(targets, str) else list(targets)
    require(len(endings) > 0, "targets", targets, "at least one name", "or 'all'")
    known = sorted({name.split(".")[-1] for name in layers})
    for ending in endings:
        some = any(_ends(name, ending) for name in layers)
        need, remedy = f"among {known}", "the names of layers, or 'all'"
        require(some, "targets", ending, need, remedy)
    head, tied = "lm_head" in endings, getattr(model.config, "tied", False)
    remedy = "leave it out, or build the model with tied=False"
    require(not (head and tied), "targets", "a tied head", "an untied one", remedy)
    return {
        name: module
        for name, module in layers.items()
        if any(_ends(name, ending) for ending in endings)
    }


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a module of a model by name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
