"""Out and back in: a minillm is a LlamaForCausalLM.

The file format of the open models is a folder: ``config.json`` names the architecture
and its sizes, ``model.safetensors`` holds the weights. Our modules carry transformers'
names, so export adds a prefix and import takes it off; nothing is permuted. Parity in
both directions is tested.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from minillm.errors import differences, require, require_file, require_one_of
from minillm.files import load_tensors, save_tensors, shapes, write_json
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
# What a Llama of ours always is; these are also the defaults of a file that is silent.
FIXED = {"model_type": "llama", "hidden_act": "silu"}
FIXED |= {"attention_bias": False, "mlp_bias": False}
DTYPES = ("float32", "bfloat16", "float16")


def llama_config(config: GPTConfig, dtype: str, eot=None, pad=None) -> dict:
    """Write our configuration in the words of a Llama's ``config.json``.

    Args:
        config: of the model.
        dtype: of the weights, as torch names it.
        eot: the token that ends a document, and begins the next.
        pad: the token that fills rows up.

    >>> llama_config(GPTConfig(64), "float32")["model_type"]
    'llama'
    """
    return {
        **FIXED,
        "architectures": ["LlamaForCausalLM"],
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,  # transformers 4 reads this line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": dtype,
        "bos_token_id": eot,
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
        ValueError: float64 weights, which no such folder holds; an encoder; a model
            with adapters, experts or quantized layers, which is no Llama.
        DiskFullError: no room; config.json comes last, so the folder does not load.
    """
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    require_one_of(DTYPES, dtype=dtype)
    model.config.require_causal()
    folder, head = Path(folder), "lm_head.weight"
    weights = model.weights()
    with torch.device("meta"):
        other = sorted(weights.keys() ^ GPT(model.config).weights().keys())
    need, remedy = "a plain Llama's", "merge or unload what was put into it"
    require(not other, "weights", other[:4], need, remedy)
    theirs = {n if n == head else f"model.{n}": t for n, t in weights.items()}
    save_tensors(folder / "model.safetensors", theirs, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.to_huggingface(folder)
    eot, pad = (tokenizer.eot, tokenizer.pad) if tokenizer else (None, None)
    config = llama_config(model.config, dtype, eot, pad)
    write_json(folder / "config.json", config, indent=2)
    return folder


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
    ours = {n.removeprefix("model."): t.float() for n, t in theirs.items()}
    ours = {n: t for n, t in ours.items() if not n.endswith("inv_freq")}
    if config.tied and "embed_tokens.weight" in ours:
        ours["lm_head.weight"] = ours["embed_tokens.weight"]
    with torch.device("meta"):  # no memory and no random numbers for what is replaced
        wrong = differences(shapes(ours), shapes(GPT(config).state_dict()))
    remedy = "check that config.json and the weights belong to the same Llama"
    whole = f"whole; differs in (found, needed) {[*wrong.items()][:4]}"
    require(not wrong, "folder", str(folder), whole, remedy)
    model = GPT(config)
    model.load_state_dict(ours)
    return model


def _read_config(folder: Path) -> GPTConfig:
    path = folder / "config.json"
    require_file(path, "give the folder that export or save_pretrained wrote")
    try:
        theirs = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        theirs = {}
    theirs = FIXED | {"model_type": None, "tie_word_embeddings": False} | theirs
    for name, ours in FIXED.items():
        value = theirs[name]
        require(value == ours, name, value, repr(ours), "choose another Llama")
    theirs.setdefault("num_key_value_heads", theirs.get("num_attention_heads"))
    lacking = [name for name in SIZES.values() if name not in theirs]
    require(not lacking, "config.json", lacking, "complete", "write it again")
    # transformers 4 wrote rope_scaling; where both stand, it wins in transformers 5.
    rope = (theirs.get("rope_parameters") or {}) | (theirs.get("rope_scaling") or {})
    kind, plain = rope.get("rope_type", rope.get("type", "default")), "'default'"
    require(kind == "default", "rope_type", kind, plain, "choose an unscaled Llama")
    theta = rope.get("rope_theta", theirs.get("rope_theta", 10_000.0))
    sizes = {ours: theirs[name] for ours, name in SIZES.items()}
    config = GPTConfig(**sizes, rope_theta=theta)
    D, same = theirs.get("head_dim"), f"C / H = {config.head_dim}"
    require(D in (None, config.head_dim), "head_dim", D, same, "choose another Llama")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files, tensors = ["model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    # Like transformers, prefer the one file: an index beside it may be a leftover.
    if index.is_file() and not (folder / files[0]).is_file():
        files = _read_shard_names(index)
    for name in files:
        remedy = "copy it again, or convert pickled weights (*.bin) to safetensors"
        tensors |= load_tensors(folder / name, remedy)[0]
    return tensors


def _read_shard_names(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        require(False, "path", str(index), "an index of shards", "copy it again")
