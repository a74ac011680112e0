"""What a GGUF file calls our weights and sizes, and in which order it wants the rows.

llama.cpp's RoPE turns neighbours (0, 1), (2, 3), ...; ours, like transformers', turns
(0, D/2), (1, D/2 + 1), ... So the rows of queries and keys are interleaved, within each
head. A permutation of whole rows loses nothing, also where they are quantized.

Source: ``convert_hf_to_gguf.py`` of llama.cpp; docs/gguf.md of ggml for the metadata.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from minillm.compression.kquants import Blocks
from minillm.data.bpe import token_bytes
from minillm.data.huggingface import spell
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require
from minillm.model import GPTConfig

# our name -> the name in a file's metadata, less the "llama." before it
SIZES = {
    "vocab_size": "vocab_size",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_kv_head": "attention.head_count_kv",
    "n_embd": "embedding_length",
    "n_hidden": "feed_forward_length",
    "context": "context_length",
}
NUMBERS = {
    "rope_theta": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}


def names_in_file(ours: Iterable[str], n_layer: int) -> dict[str, str]:
    """Our name of each weight -> its name in the file, as the package knows it."""
    import gguf

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_layer)
    full = {n: n if n.startswith("lm_head") else f"model.{n}" for n in ours}
    found = {n: known.get_name(long, (".weight",)) for n, long in full.items()}
    other = [n for n, name in found.items() if name is None]
    remedy = "take adapters out with unload(model)"
    require(not other, "model", other[:3], "without foreign weights", remedy)
    return found


def turned(
    name: str, held: Tensor | Blocks, D: int, back: bool = False
) -> Tensor | Blocks:
    """Interleave the rows of queries and keys, or undo it; others stay as they are.

    >>> import torch
    >>> turned("q_proj.weight", torch.arange(4.0)[:, None], D=4).flatten()
    tensor([0., 2., 1., 3.])
    """
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return held
    rows = held.data if isinstance(held, Blocks) else held
    halves = (D // 2, 2) if back else (2, D // 2)
    heads = rows.reshape(held.shape[0] // D, *halves, -1)
    rows = heads.transpose(1, 2).reshape(rows.shape)
    return replace(held, data=rows) if isinstance(held, Blocks) else rows


def add_tokenizer(writer, tokenizer: Tokenizer, V: int) -> None:
    """Tokens as GPT-2 spells them, merges, and which special token is which."""
    import gguf

    n, need = tokenizer.vocab_size, f"of the model's {V} tokens"
    require(n == V, "tokenizer", n, need, "use the one that the model was trained with")
    tokens = [spell(token) for token in token_bytes(tokenizer.merges)]
    special = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.get)
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    kinds += [gguf.TokenType.CONTROL] * len(special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")  # close to our pattern, the best there is
    writer.add_token_list([*tokens, *special])
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{tokens[a]} {tokens[b]}" for a, b in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.eot)
    writer.add_eos_token_id(tokenizer.eot)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(False)


def read_config(about: dict, tied: bool) -> GPTConfig:
    """Our configuration from a file's metadata.

    Raises:
        ValueError: another architecture, sizes that are missing.
    """
    kind = about.get("general.architecture")
    require(kind == "llama", "architecture", kind, "'llama'", "choose another file")
    theirs = {ours: f"llama.{name}" for ours, name in (SIZES | NUMBERS).items()}
    lacking = [name for name in theirs.values() if name not in about]
    require(not lacking, "metadata", lacking, "complete", "write the file again")
    sizes = {ours: about[name] for ours, name in theirs.items()}
    sizes |= {ours: float(f"{sizes[ours]:.7g}") for ours in NUMBERS}  # were float32
    return GPTConfig(**sizes, tied=tied)
