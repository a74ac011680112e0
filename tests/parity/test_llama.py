"""A minillm is a LlamaForCausalLM: the same logits and the same words, both ways."""

import json

import pytest
import torch
from torch import nn

from minillm.model import (
    GPT,
    GREEDY,
    GPTConfig,
    export_huggingface,
    generate,
    import_huggingface,
    pad_left,
)

transformers = pytest.importorskip("transformers")

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context": 40, "n_hidden": 48}
SHAPES = {
    "tied": GPTConfig(61, **SMALL),
    "untied": GPTConfig(61, **SMALL, tied=False),
    "GQA": GPTConfig(61, **SMALL, n_kv_head=2, tied=False, rope_theta=500.0),
    "MQA": GPTConfig(61, **SMALL, n_kv_head=1, norm_eps=1e-3),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
# Both run in float32, 24 bits, with logits of order 1 to 10 after some hundred
# roundings in another order: 1e-5 of the largest logit is what that leaves.
CLOSE = {"rtol": 1e-4, "atol": 5e-5}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


def spread_model(config: GPTConfig) -> GPT:
    """Weights so large that a wrong angle, scale or norm cannot hide."""
    model = GPT(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.25)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def theirs_from(folder):
    model, report = transformers.LlamaForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    return model.eval()


def their_llama(config: GPTConfig, **changes):
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "initializer_range": 0.25,
    }
    theirs = transformers.LlamaConfig(**(settings | changes))
    return transformers.LlamaForCausalLM(theirs).eval()


# --- logits -------------------------------------------------------------------------


@every_shape
@torch.no_grad()
def test_our_export_loads_there_with_equal_logits(tmp_path, config):
    ours = spread_model(config)
    theirs = theirs_from(export_huggingface(ours, tmp_path))
    tokens = torch.randint(61, (3, 40))
    expected = ours(tokens)
    assert expected.abs().max() > 3  # not so small that everything is close
    torch.testing.assert_close(theirs(tokens).logits, expected, **CLOSE)


@every_shape
@torch.no_grad()
def test_their_model_loads_here_with_equal_logits(tmp_path, config):
    theirs = their_llama(config)
    theirs.save_pretrained(tmp_path)
    ours = import_huggingface(tmp_path)
    assert ours.config == config
    tokens = torch.randint(61, (3, 40))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **CLOSE)


@every_shape
@torch.no_grad()
def test_in_float64_only_the_precision_of_the_angles_is_left(tmp_path, config):
    theirs = their_llama(config)
    theirs.save_pretrained(tmp_path)
    ours, theirs = import_huggingface(tmp_path).double(), theirs.double()
    tokens = torch.randint(61, (2, 40))
    # They compute cosines of float32 angles, up to 40 radians: wrong by 40 * 2^-24.
    torch.testing.assert_close(
        ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=2e-5
    )


@torch.no_grad()
def test_padded_batches_have_equal_logits_at_real_tokens(tmp_path):
    ours = spread_model(SHAPES["GQA"])
    theirs = theirs_from(export_huggingface(ours, tmp_path))
    for pad in (pad_left, pad_right):
        tokens, mask = pad(PROMPTS)
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = theirs(tokens, attention_mask=mask.long(), position_ids=places).logits
        torch.testing.assert_close(ours(tokens, mask)[mask], logits[mask], **CLOSE)


def pad_right(prompts):
    tokens, mask = pad_left([prompt[::-1] for prompt in prompts])
    return tokens.flip(1), mask.flip(1)


# --- words --------------------------------------------------------------------------


@pytest.mark.parametrize("eot", [None, 30])
@every_shape
def test_greedy_texts_of_a_padded_batch_are_equal(tmp_path, config, eot):
    ours = spread_model(config)
    theirs = theirs_from(export_huggingface(ours, tmp_path))
    tokens, mask = pad_left(PROMPTS, pad=60)
    settings = {"max_new_tokens": 25, "do_sample": False, "pad_token_id": 60}
    expected = theirs.generate(
        tokens, attention_mask=mask.long(), eos_token_id=eot, **settings
    )
    written = generate(ours, PROMPTS, 25, GREEDY, stop=eot, pad=60)
    assert written.tokens.equal(expected[:, : written.tokens.shape[1]])
    assert len({tuple(row) for row in written.completions()}) > 1


# --- the folder ---------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_out_and_back_in_again_is_bit_equal(tmp_path, config, dtype):
    model = spread_model(config).to(dtype)
    again = import_huggingface(export_huggingface(model, tmp_path))
    assert again.config == config
    assert (again.lm_head.weight is again.embed_tokens.weight) is config.tied
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(model.state_dict()[name].float()), name
    assert theirs_from(tmp_path).dtype == dtype


def test_their_config_says_what_ours_does(tmp_path):
    config = SHAPES["GQA"]
    theirs = theirs_from(export_huggingface(spread_model(config), tmp_path)).config
    assert theirs.rope_parameters["rope_theta"] == 500.0
    assert theirs.rms_norm_eps == config.norm_eps
    assert theirs.max_position_embeddings == 40 and theirs.head_dim == 8


def test_shards_are_read_as_one_model(tmp_path):
    theirs = their_llama(SHAPES["GQA"])
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    tokens = torch.randint(61, (2, 12))
    ours = import_huggingface(tmp_path)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **CLOSE)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"a file, got .*{shards[1].name}"):
        import_huggingface(tmp_path)


def test_a_leftover_index_does_not_win_over_a_new_export(tmp_path):
    # transformers reads the single file, so we must, too.
    their_llama(SHAPES["GQA"]).save_pretrained(tmp_path, max_shard_size="20KB")
    ours = spread_model(SHAPES["GQA"])
    export_huggingface(ours, tmp_path)
    tokens = torch.randint(61, (2, 12))
    assert import_huggingface(tmp_path)(tokens).equal(ours(tokens))
    torch.testing.assert_close(
        theirs_from(tmp_path)(tokens).logits, ours(tokens), **CLOSE
    )


def test_a_head_that_is_stored_although_it_is_tied_is_no_obstacle(tmp_path):
    ours = spread_model(SHAPES["tied"])
    export_huggingface(ours, tmp_path)
    rewrite_weights(tmp_path, lambda w: w | {"lm_head.weight": torch.zeros(61, 32)})
    assert import_huggingface(tmp_path).lm_head.weight.equal(ours.lm_head.weight)


def test_buffers_that_old_files_carry_are_no_obstacle(tmp_path):
    export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite_weights(tmp_path, lambda weights: weights | {name: torch.ones(4)})
    import_huggingface(tmp_path)


def test_a_config_of_transformers_4_is_understood(tmp_path):
    ours = spread_model(SHAPES["GQA"])
    export_huggingface(ours, tmp_path)

    def old(config: dict) -> dict:
        del config["rope_parameters"], config["head_dim"]
        return config | {"rope_scaling": None, "torch_dtype": config.pop("dtype")}

    rewrite_config(tmp_path, old)
    assert import_huggingface(tmp_path).config == ours.config


def test_float64_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"one of \('float32', 'bfloat16', 'float16'\).*64"
    ):
        export_huggingface(spread_model(SHAPES["tied"]).double(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- what is no Llama of ours -------------------------------------------------------


def rewrite_config(folder, change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rewrite_weights(folder, change) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, {"format": "pt"})


def without(name: str):
    return lambda entries: {n: value for n, value in entries.items() if n != name}


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be 'llama', got 'gpt2'"),
        ({"model_type": None}, "model_type must be 'llama'"),
        ({"rope_parameters": SCALED}, "rope_type must be 'default', got 'linear'"),
        ({"rope_scaling": SCALED, "rope_parameters": None}, "rope_type must be"),
        ({"rope_scaling": {"type": "dynamic"}, "rope_parameters": None}, "rope_type"),
        ({"rope_scaling": SCALED}, "rope_type must be 'default'"),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"head_dim": 16}, r"head_dim must be C / H = 8, got 16"),
        ({"hidden_size": 30}, "n_embd must be a multiple of"),
        ({"vocab_size": "many"}, "vocab_size must be an int"),
        ({"num_hidden_layers": 3}, "folder must be whole; differs in"),
        ({"vocab_size": 62}, "folder must be whole; differs in"),
        ({"tie_word_embeddings": False}, "folder must be whole; differs in"),
    ],
    ids=str,
)
def test_a_config_of_something_else_is_refused_with_the_reason(
    tmp_path, change, message
):
    export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
    rewrite_config(tmp_path, lambda config: config | change)
    with pytest.raises(ValueError, match=message):
        import_huggingface(tmp_path)


@pytest.mark.parametrize("name", ["hidden_size", "rms_norm_eps", "vocab_size"])
def test_a_config_without_a_size_is_refused_by_its_name(tmp_path, name):
    export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
    rewrite_config(tmp_path, without(name))
    with pytest.raises(ValueError, match=f"config.json must be complete, .*{name}"):
        import_huggingface(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '"llama"'])
def test_a_config_that_is_no_object_is_refused(tmp_path, content):
    export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="model_type must be 'llama', got None"):
        import_huggingface(tmp_path)


def test_missing_foreign_and_misshapen_weights_are_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "layers.1.mlp.up_proj": without(name),
        "layers.9": lambda weights: weights | {"model.layers.9.x": torch.ones(1)},
        "up_proj.*48, 32": lambda weights: weights | {name: torch.ones(3, 3)},
    }
    for named, change in changes.items():
        export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
        rewrite_weights(tmp_path, change)
        with pytest.raises(ValueError, match=f"folder must be whole.*{named}"):
            import_huggingface(tmp_path)


def test_missing_folders_files_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a file, got .*none.config.json"):
        import_huggingface(tmp_path / "none")
    export_huggingface(spread_model(SHAPES["tied"]), tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    for content in (b"", good[:100], good[:-1], b"no tensors" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be an intact safetensors file"):
            import_huggingface(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a file, got .*model.safetensors"):
        import_huggingface(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("", "{}", "[]", '{"weight_map": 3}'):
        index.write_text(content)
        with pytest.raises(ValueError, match="path must be an index of shards"):
            import_huggingface(tmp_path)
