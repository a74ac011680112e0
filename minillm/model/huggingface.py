"""Out and back in: a minillm is a LlamaForCausalLM.

The file format of the open models is a folder: ``config.json`` names the architecture
and its sizes, ``model.safetensors`` holds the weights. Our modules carry transformers'
names, so export adds a prefix and import takes it off; nothing is permuted. Parity in
both directions is tested.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.errors import require
from minillm.files import atomic_write
from minillm.model.config import GPTConfig
from minillm.model.gpt import GPT

# our name -> the name in a Llama's config.json
SIZES = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "n_hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def llama_config(
    config: GPTConfig, dtype: str, eot: int | None, pad: int | None
) -> dict:
    """Write our configuration in the words of a Llama's ``config.json``.

    >>> llama_config(GPTConfig(64), "float32", eot=None, pad=None)["model_type"]
    'llama'
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": config.rope_theta,  # transformers 4 reads this line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": dtype,
        "bos_token_id": eot,  # one token both ends a document and begins the next
        "eos_token_id": eot,
        "pad_token_id": pad,
    }


def export_huggingface(model: GPT, folder: str | Path, tokenizer=None) -> Path:
    """Write ``model`` as a folder that transformers loads as LlamaForCausalLM.

    Args:
        model: the model; float32, bfloat16 or float16.
        folder: made if needed; files in it with the same names are replaced.
        tokenizer: a ``minillm.data.Tokenizer``, so that AutoTokenizer finds its files.

    Raises:
        ValueError: float64 weights, which no such folder holds.
        DiskFullError: no room; config.json comes last, so the folder does not load.
    """
    dtype = model.embed_tokens.weight.dtype
    remedy = "convert the model with .float() first"
    require(dtype in DTYPES, "model", dtype, "float32, bfloat16 or float16", remedy)
    folder = Path(folder)
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(_llama_tensors(model), temporary, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.to_huggingface(folder)
    eot, pad = (tokenizer.eot, tokenizer.pad) if tokenizer else (None, None)
    config = llama_config(model.config, DTYPES[dtype], eot, pad)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _llama_tensors(model: GPT) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            if model.config.tied:
                continue  # safetensors refuses the same memory twice
            tensors[name] = tensor
        else:
            tensors[f"model.{name}"] = tensor
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def import_huggingface(folder: str | Path) -> GPT:
    """Load a Llama from a folder in Hugging Face format, in float32.

    Args:
        folder: holds ``config.json`` and ``model.safetensors`` (or shards and an
        index).

    Raises:
        FileNotFoundError: no such folder or files.
        ValueError: another architecture, features that minillm lacks (biases, scaled
            RoPE, another head size), weights that are missing, foreign or corrupt.
    """
    folder = Path(folder)
    config = _read_config(folder)
    theirs = _read_weights(folder)
    ours = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
    ours = {n: t.float() for n, t in ours.items() if not n.endswith("inv_freq")}
    if config.tied:
        ours["lm_head.weight"] = ours.get("embed_tokens.weight")
    with torch.device("meta"):  # no memory and no random numbers for what is replaced
        expected = {n: tuple(t.shape) for n, t in GPT(config).state_dict().items()}
    found = {name: tuple(t.shape) for name, t in ours.items() if t is not None}
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    remedy = "check that config.json and the weights belong to the same Llama"
    require(not wrong, "folder", str(folder), f"whole; differs in {wrong[:4]}", remedy)
    model = GPT(config)
    model.load_state_dict(ours)
    return model


def _read_config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold config.json, got {str(folder)!r} without one; give the "
            "folder that export_huggingface or save_pretrained wrote"
        )
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        kind = theirs.get("model_type")
    except (ValueError, AttributeError):
        theirs, kind = {}, None
    require(kind == "llama", "model_type", kind, "'llama'", "only Llamas can be loaded")
    theirs.setdefault("num_key_value_heads", theirs.get("num_attention_heads"))
    theirs.setdefault("tie_word_embeddings", False)
    lacking = [name for name in SIZES.values() if name not in theirs]
    require(not lacking, "config.json", lacking, "complete", "write it again")
    # transformers 4 wrote rope_scaling; where both stand, it wins in transformers 5.
    rope = (theirs.get("rope_parameters") or {}) | (theirs.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(
        kind == "default", "rope_type", kind, "'default'", "choose an unscaled Llama"
    )
    for bias in ("attention_bias", "mlp_bias"):
        value = theirs.get(bias, False)
        require(not value, bias, value, "false", "minillm has no biases")
    act = theirs.get("hidden_act", "silu")
    require(act == "silu", "hidden_act", act, "'silu'", "minillm has no other gate")
    theta = rope.get("rope_theta", theirs.get("rope_theta", 10_000.0))
    sizes = {ours: theirs[name] for ours, name in SIZES.items()}
    config = GPTConfig(**sizes, rope_theta=theta)
    D = theirs.get("head_dim") or config.head_dim
    same = config.head_dim == D
    require(same, "head_dim", D, f"C / H = {config.head_dim}", "choose another Llama")
    return config


def _read_shard_names(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        require(False, "path", str(index), "an index of shards", "copy it again")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files, tensors = ["model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    # Like transformers, prefer the one file: an index beside it may be a leftover.
    if index.is_file() and not (folder / files[0]).is_file():
        files = _read_shard_names(index)
    for name in files:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"folder must hold {name}, got {str(folder)!r} without it; pickled "
                "weights (pytorch_model.bin) have to be converted to safetensors first"
            )
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            remedy = "copy or export it again"
            require(False, "path", str(path), f"a safetensors file ({error})", remedy)
    return tensors
