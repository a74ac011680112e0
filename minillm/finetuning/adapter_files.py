"""Adapters as files, in the format of PEFT: a folder with a config and the factors.

    adapter_config.json         how to make the layers: rank, alpha, targets
    adapter_model.safetensors   their factors, by PEFT's names

A model that was exported with ``export_huggingface`` and a LoRA saved here answer in
transformers and PEFT as they do here; parity is tested in both directions.
"""

import json
from pathlib import Path

from torch import nn

from minillm.errors import require, require_file, require_one_of
from minillm.files import load_tensors, save_tensors, write_json
from minillm.finetuning.dora import DoRALinear
from minillm.finetuning.lora import LoRALinear, apply_lora, lora_layers
from minillm.finetuning.lora_state import load_lora_state, lora_state

PREFIX = "base_model.model.model."
THEIRS = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
OURS = {theirs: ours for ours, theirs in THEIRS.items()}
FIXED = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
UNUSED = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")


def save_lora(model: nn.Module, folder: str | Path, base: str = "") -> Path:
    """Write what was learned, and nothing of the base, for PEFT or for ``load_lora``.

    Args:
        model: with a LoRA or a DoRA whose layers all have the same settings.
        folder: made if needed.
        base: folder or name of the base model, for whoever loads it.

    Raises:
        ValueError: no LoRA, or layers with different settings.
    """
    folder, layers = Path(folder), lora_layers(model)
    settings = {_settings(layer) for layer in layers.values()}
    remedy = "save adapters of different settings one by one"
    require(len(settings) == 1, "model", settings, "of one setting", remedy)
    tensors = {_their_name(name): t for name, t in lora_state(model).items()}
    save_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    rank, alpha, dropout, stabilized, dora = settings.pop()
    config = FIXED | {
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": stabilized,
        "use_dora": dora,
        "target_modules": list(layers),  # whole names, so that no other layer matches
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config, indent=2)
    return folder


def load_lora(model: nn.Module, folder: str | Path) -> nn.Module:
    """Give a plain model the adapter that a folder holds, ours or PEFT's.

    Raises:
        FileNotFoundError: no such folder or files.
        ValueError: another kind of adapter, features that minillm lacks, layers or
            shapes that the model has not.
    """
    folder = Path(folder)
    remedy = "give the folder of an adapter"
    require_file(folder / "adapter_config.json", remedy)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    require_one_of(("LORA",), peft_type=config.get("peft_type"))
    for feature in UNUSED:
        none = not config.get(feature)
        require(none, feature, config.get(feature), "empty", "minillm has one setting")
    tensors, _ = load_tensors(folder / "adapter_model.safetensors", remedy)
    state = {_our_name(name): tensor for name, tensor in tensors.items()}
    apply_lora(
        model,
        config["r"],
        config["lora_alpha"],
        targets=sorted({name.rpartition(".")[0] for name in state}),
        dropout=config.get("lora_dropout", 0.0),
        rank_stabilized=config.get("use_rslora", False),
        layer=DoRALinear if config.get("use_dora") else LoRALinear,
    )
    return load_lora_state(model, state)


def _settings(layer: LoRALinear) -> tuple:
    named = ("rank", "alpha", "dropout", "rank_stabilized")
    return (*(getattr(layer, n) for n in named), isinstance(layer, DoRALinear))


def _their_name(name: str) -> str:
    layer, _, factor = name.rpartition(".")
    return f"{PREFIX}{layer}.{THEIRS[factor]}"


def _our_name(name: str) -> str:
    for theirs, ours in OURS.items():
        if name.startswith(PREFIX) and name.endswith("." + theirs):
            return f"{name[len(PREFIX) : -len(theirs)]}{ours}"
    remedy = "is it the LoRA of a Llama?"
    require(False, "adapter_model.safetensors", name, "a factor of a layer", remedy)
    return name
