"""Blocks beside the dequantizer of the gguf package, and files that it reads."""

import math

import numpy as np
import pytest
import torch

from minillm.compression.gguf_file import export_gguf, import_gguf
from minillm.compression.kquants import KINDS, quantize_gguf
from minillm.compression.linear import HeldLinear
from minillm.compression.nf4 import quantize_nf4
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.compression.whole import quantize_model, stored_bits
from minillm.data import Tokenizer
from minillm.files import DiskFullError
from minillm.finetuning.lora import apply_lora
from minillm.model import GPT, GPTConfig
from minillm.model.attention import apply_rope, rope_rotations

gguf = pytest.importorskip("gguf")
BITS = {"Q4_0": 4.5, "Q8_0": 8.5, "Q4_K": 4.5, "Q6_K": 6.5625}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(rows=6, columns=512):
    """Blocks of other sizes, one of zeros, one of one sign, one with an outlier."""
    weight = normal(rows, columns) * 10.0 ** torch.arange(-3, rows - 3)[:, None]
    weight[0, :256], weight[1, :256] = 0, weight[1, :256].abs() + 1
    weight[2, 300] = 50
    return weight


@pytest.mark.parametrize("kind", KINDS)
def test_the_gguf_package_reads_the_same_weights_to_the_bit(kind):
    q = quantize_gguf(uneven(), kind)
    theirs = gguf.quants.dequantize(q.data.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(q.weight().numpy(), theirs.reshape(q.shape))
    size, bytes_ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert (KINDS[kind].size, q.data.shape[1]) == (size, bytes_)
    assert 8 * q.data.numel() / q.shape.numel() == BITS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_mean_the_same_here_and_there(kind):
    # also those that no quantizer would write; scales are kept finite
    dice = torch.Generator().manual_seed(1)
    shape = (64, quantize_gguf(uneven(), kind).data.shape[1])
    data = torch.randint(256, shape, generator=dice).to(torch.uint8)
    scales = torch.randn(64, 2, generator=dice).half().view(torch.uint8)
    place = slice(208, 210) if kind == "Q6_K" else slice(0, 4 if kind == "Q4_K" else 2)
    data[:, place] = scales[:, : place.stop - place.start]
    theirs = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(KINDS[kind].decode(data).numpy(), theirs)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_plain_blocks_are_the_bytes_that_the_package_writes(kind):
    ours = quantize_gguf(uneven(), kind).data.numpy()
    theirs = gguf.quants.quantize(uneven().numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(ours, theirs.reshape(ours.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_quantized_once_is_nearly_the_same_when_quantized_again(kind):
    once = quantize_gguf(normal(8, 256), kind).weight()
    again = quantize_gguf(once, kind).weight()
    assert (again - once).norm() < 0.3 * (once - normal(8, 256)).norm()


def test_more_bits_are_closer_and_minima_pay():
    weight = normal(256, 256, seed=2)
    off = {k: (quantize_gguf(weight, k).weight() - weight).norm() for k in KINDS}
    assert off["Q8_0"] < off["Q6_K"] < off["Q4_K"] < off["Q4_0"]
    nf4 = (quantize_nf4(weight).weight() - weight).norm()  # 4.5 bits, too
    rtn = (quantize_rtn(weight, Grid(4, 32)).weight() - weight).norm()  # 4.625 bits
    assert off["Q4_K"] < nf4
    assert off["Q4_K"] < 1.02 * rtn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-40, 1e-12, 1e-6, 6e4])
def test_no_size_of_weights_gives_nan(kind, size):
    weight = size * normal(2, 256).clamp(-1, 1)
    q = quantize_gguf(weight, kind).weight()
    assert ((q - weight).abs() <= 0.3 * size + 1e-4).all()


@pytest.mark.parametrize(
    ("weight", "kind", "words"),
    [
        (torch.full((1, 256), math.nan), "Q4_K", "finite"),
        (torch.ones(256), "Q4_K", "matrix"),
        (torch.ones(2, 64), "Q4_K", "blocks of 256"),
        (torch.ones(2, 8), "Q8_0", "blocks of 32"),
        (torch.ones(1, 256), "Q5_K", "kind"),
        (torch.full((1, 256), 1e30), "Q8_0", "finite"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(weight, kind, words):
    with pytest.raises(ValueError, match=words):
        quantize_gguf(weight, kind)


# Files

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])


def model(seed=0, **shape):
    torch.manual_seed(seed)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 256, "n_hidden": 512, "context": 32}
    net = GPT(GPTConfig(40, **(sizes | shape)))
    for (
        parameter
    ) in net.parameters():  # norms that are not all ones, logits that differ
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


SHAPES = [{}, {"tied": False, "n_kv_head": 2, "rope_theta": 5e5, "norm_eps": 1e-6}]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_floats_comes_back_bit_for_bit(shape, tmp_path):
    net = model(**shape)
    again = import_gguf(export_gguf(net, tmp_path / "some.gguf"))
    assert again.config == net.config
    assert torch.equal(again(TOKENS), net(TOKENS))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_comes_back_with_its_bytes(kind, shape, tmp_path):
    net = quantize_model(model(**shape), lambda w, x: quantize_gguf(w, kind))
    path = export_gguf(net, tmp_path / "some.gguf")
    again = import_gguf(path)
    assert torch.equal(again(TOKENS), net(TOKENS))
    assert stored_bits(again) == stored_bits(net)
    second = export_gguf(again, tmp_path / "other.gguf")
    assert second.read_bytes() == path.read_bytes()
    # and its logits are those of the weights that the gguf package makes of the file
    floats = model(**shape)
    for name, layer in net.named_modules():
        if isinstance(layer, HeldLinear):
            floats.get_submodule(name).weight.data = layer.weight
    torch.testing.assert_close(again(TOKENS), floats(TOKENS))


def test_tensors_have_the_names_and_rows_that_llama_cpp_expects(tmp_path):
    net = quantize_model(model(), lambda w, x: quantize_gguf(w), targets="up_proj")
    reader = gguf.GGUFReader(export_gguf(net, tmp_path / "some.gguf"))
    found = {t.name: t for t in reader.tensors}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    parts += ("ffn_down", "attn_norm", "ffn_norm")
    blocks = {f"blk.{i}.{part}.weight" for i in range(2) for part in parts}
    assert set(found) == blocks | {"token_embd.weight", "output_norm.weight"}
    up = found["blk.1.ffn_up.weight"]
    assert up.tensor_type.name == "Q4_K"
    weight = gguf.quants.dequantize(up.data, up.tensor_type)
    assert np.array_equal(weight, net.layers[1].mlp.up_proj.weight.numpy())
    embedding = found["token_embd.weight"].data
    assert np.array_equal(embedding, net.embed_tokens.weight.detach().numpy())
    # rows of a head of llama.cpp: 0, D/2, 1, D/2 + 1, ...
    D, q = 64, net.layers[0].self_attn.q_proj.weight.detach().numpy()
    theirs = found["blk.0.attn_q.weight"].data
    assert np.array_equal(theirs[D], q[D])
    assert np.array_equal(theirs[D + 1], q[D + D // 2])
    assert np.array_equal(theirs[D + 2], q[D + 1])


def test_turned_by_neighbours_the_scores_are_those_of_our_halves(tmp_path):
    # What llama.cpp computes with the rows of the file: RoPE on (0, 1), (2, 3), ...
    net, D, T = model(n_layer=1), 64, 5
    reader = gguf.GGUFReader(export_gguf(net, tmp_path / "some.gguf"))
    rows = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    x, turn = normal(T, 256), rope_rotations(D, T)  # T 1 D/2

    def neighbours(name):
        y = (x @ rows[f"blk.0.{name}.weight"].T).view(T, 4, D // 2, 2)
        return torch.view_as_real(torch.view_as_complex(y) * turn).flatten(2)

    def halves(layer):
        return apply_rope((x @ layer.weight.T).view(1, T, 4, D), turn)[0]

    attention = net.layers[0].self_attn
    theirs = torch.einsum("thd,shd->hts", neighbours("attn_q"), neighbours("attn_k"))
    ours = [halves(layer) for layer in (attention.q_proj, attention.k_proj)]
    torch.testing.assert_close(theirs, torch.einsum("thd,shd->hts", *ours))


def test_sizes_and_tokenizer_stand_in_the_file(tmp_path):
    tokenizer = Tokenizer.train("to be or not to be, said né", 266)
    net = GPT(GPTConfig(266, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, tied=False))
    reader = gguf.GGUFReader(export_gguf(net, tmp_path / "a.gguf", tokenizer))
    about = {name: field.contents() for name, field in reader.fields.items()}
    expected = {"block_count": 1, "context_length": 256, "embedding_length": 32}
    expected |= {"attention.head_count": 2, "attention.head_count_kv": 1}
    expected |= {"rope.dimension_count": 16, "rope.freq_base": 10_000.0}
    assert all(about[f"llama.{n}"] == value for n, value in expected.items())
    tokens = about["tokenizer.ggml.tokens"]
    assert len(tokens) == 266 == about["llama.vocab_size"]
    assert tokens[32] == "Ġ"
    assert tokens[tokenizer.eot] == "<|endoftext|>"
    assert about["tokenizer.ggml.eos_token_id"] == tokenizer.eot
    assert about["tokenizer.ggml.token_type"][-4:] == [3] * 4  # control
    for merge, (a, b) in zip(
        about["tokenizer.ggml.merges"], tokenizer.merges, strict=True
    ):
        assert merge.split() == [tokens[a], tokens[b]]


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = export_gguf(model(), tmp_path / "some.gguf")
    before = path.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fails)
    with pytest.raises(DiskFullError, match=r"some\.gguf"):
        export_gguf(model(1), path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["some.gguf"]


def test_what_is_no_file_of_a_llama_is_refused(tmp_path):
    path = export_gguf(model(n_layer=1), tmp_path / "some.gguf")
    whole = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    for n in (0, 3, 40, 500, len(whole) // 2, len(whole) - 1000):
        bad.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="path"):
            import_gguf(bad)
    bad.write_bytes(b"not a file of this kind" * 100)
    with pytest.raises(ValueError, match="intact"):
        import_gguf(bad)
    bad.write_bytes(whole.replace(b"llama", b"gemma"))
    with pytest.raises(ValueError, match="architecture"):
        import_gguf(bad)
    bad.write_bytes(whole.replace(b"blk.0.ffn_up", b"blk.9.ffn_up"))
    with pytest.raises(ValueError, match=r"blk\.9"):
        import_gguf(bad)
    with pytest.raises(FileNotFoundError):
        import_gguf(tmp_path / "none.gguf")


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    path, small = tmp_path / "some.gguf", {"n_layer": 1, "n_embd": 64, "n_hidden": 192}
    with pytest.raises(ValueError, match="Blocks of GGUF"):
        export_gguf(quantize_model(model(), lambda w, x: quantize_nf4(w)), path)
    with pytest.raises(ValueError, match="whole blocks"):
        export_gguf(quantize_model(model(**small), lambda w, x: quantize_gguf(w)), path)
    with pytest.raises(ValueError, match="causal"):
        export_gguf(model(**small, causal=False), path)
    with pytest.raises(ValueError, match="tokenizer"):
        export_gguf(model(**small), path, Tokenizer(()))
    with pytest.raises(ValueError, match="unload"):
        export_gguf(apply_lora(model(**small), rank=2), path)
    assert not path.exists()
