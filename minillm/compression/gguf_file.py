"""A GGUF file: the model as llama.cpp and everything built on it reads it.

GGUF is a container and no quantization: a header, key-value pairs (sizes, the
tokenizer), names and shapes of tensors, then their bytes, each in a format of its own.
So a file may hold floats, blocks of four bits, or both:

    blk.0.attn_q.weight      self_attn.q_proj, its rows in another order (gguf_layout)
    blk.0.ffn_up.weight      mlp.up_proj
    token_embd.weight        embed_tokens; without output.weight it is the head, too

The package ``gguf`` of llama.cpp's own authors writes and reads the bytes:
``pip install gguf``. Source: the format's specification, docs/gguf.md of ggml.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minillm.compression.gguf_layout import (
    NUMBERS,
    SIZES,
    add_tokenizer,
    names_in_file,
    read_config,
    turned,
)
from minillm.compression.kquants import KINDS, Blocks
from minillm.compression.linear import HeldLinear
from minillm.data.tokenizer import Tokenizer
from minillm.errors import differences, require, require_file
from minillm.files import atomic_write
from minillm.model import GPT


def export_gguf(
    model: GPT, path: str | Path, tokenizer: Tokenizer | None = None
) -> Path:
    """Write a model as one GGUF file of the llama architecture.

    Layers that were quantized by ``quantize_gguf`` go into the file as they are; all
    other weights in float32.

    Args:
        model: plain, or one of ``quantize_model``.
        path: of the file; replaced whole or not at all.
        tokenizer: goes into the file as a byte-level BPE.

    Raises:
        ValueError: an encoder, layers in other formats, blocks that run over the ends
            of rows.
        DiskFullError: no room; the file is as it was.
    """
    import gguf

    c = model.config
    c.require_causal()
    weights = _held_weights(model)
    names = names_in_file(weights, c.n_layer)
    tensors = {names[n]: turned(n, held, c.head_dim) for n, held in weights.items()}
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        for ours, theirs in SIZES.items():
            writer.add_uint32(f"llama.{theirs}", getattr(c, ours))
        for ours, theirs in NUMBERS.items():
            writer.add_float32(f"llama.{theirs}", getattr(c, ours))
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if tokenizer is not None:
            add_tokenizer(writer, tokenizer, c.vocab_size)
        for name, held in tensors.items():
            kind, rows = getattr(held, "kind", "F32"), getattr(held, "data", held)
            rows = rows.contiguous().view(held.shape[0], -1)
            rows = rows.flatten() if len(held.shape) == 1 else rows
            type_ = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, rows.cpu().numpy(), raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def import_gguf(path: str | Path) -> GPT:
    """Read a file of the llama architecture back; what is quantized stays so.

    Args:
        path: a file with tensors in F32, F16, Q4_0, Q8_0, Q4_K or Q6_K.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another architecture or format, tensors that are
            missing or foreign, an embedding that is quantized.
    """
    import gguf

    require_file(path, "give a file that export_gguf or llama.cpp wrote")
    try:
        reader = gguf.GGUFReader(path)
        about = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {t.name: t for t in reader.tensors}
    except (ValueError, LookupError, OverflowError) as error:
        need = f"an intact GGUF file ({error!r})"
        require(False, "path", str(path), need, "copy or write it again")
    model = GPT(read_config(about, tied="output.weight" not in tensors))
    ours, config = _held_weights(model), model.config
    names = names_in_file(ours, config.n_layer)
    found = {n: tuple(reversed(t.shape.tolist())) for n, t in tensors.items()}
    wrong = differences(found, {names[n]: tuple(t.shape) for n, t in ours.items()})
    need = f"whole; differs in (found, needed) {[*wrong.items()][:4]}"
    require(not wrong, "path", str(path), need, "choose a plain Llama")
    for name in ours:
        held = _read_tensor(tensors[names[name]])
        _put(model, name, turned(name, held, config.head_dim, back=True))
    return model


def _held_weights(model: GPT) -> dict[str, Tensor | Blocks]:
    """Each weight by its name in a plain model, as it is held."""
    plain = {n: t for n, t in model.weights().items() if n.endswith(".weight")}
    found = {n: t.detach().float() for n, t in plain.items()}
    for name, module in model.named_modules():
        if isinstance(module, HeldLinear):
            held, remedy = module.held, "quantize_model with quantize_gguf"
            kind = type(held).__name__
            require(isinstance(held, Blocks), name, kind, "Blocks of GGUF", remedy)
            size, need = KINDS[held.kind].size, "rows of whole blocks"
            remedy = f"{held.kind} has blocks of {size}; choose smaller ones"
            whole = held.shape[1] % size == 0
            require(whole, name, tuple(held.shape), need, remedy)
            found[f"{name}.weight"] = held
    return found


def _read_tensor(tensor) -> Tensor | Blocks:
    kind, shape = tensor.tensor_type.name, torch.Size(reversed(tensor.shape.tolist()))
    known = ("F32", "F16", *KINDS)
    require(kind in known, tensor.name, kind, f"one of {known}", "convert the file")
    data = torch.from_numpy(tensor.data.copy())
    if kind in KINDS:
        blocks = shape.numel() // KINDS[kind].size
        return Blocks(data.view(blocks, -1), kind, shape)
    return data.float()


def _put(model: GPT, name: str, held: Tensor | Blocks) -> None:
    place = name.removesuffix(".weight")
    module = model.get_submodule(place)
    if not isinstance(held, Blocks):
        module.weight.data.copy_(held)
        return
    inner = isinstance(module, nn.Linear) and place != "lm_head"
    require(inner, name, held.kind, "in floats", "keep embedding and head in F32")
    parent, _, child = place.rpartition(".")
    setattr(model.get_submodule(parent), child, HeldLinear(module, held))
