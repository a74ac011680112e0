"""What a configuration promises about a model, counted on the real one."""

from dataclasses import asdict

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minillm.model import GPT, GPTConfig, KVCache
from minillm.model.config import count_parameters, flops_per_token, kv_cache_bytes

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 32, "context": 16}
SHAPES = {
    "tied": GPTConfig(50, **SMALL),
    "untied": GPTConfig(50, **SMALL, tied=False),
    "GQA": GPTConfig(50, **SMALL, n_kv_head=2, n_hidden=40, tied=False),
    "MQA": GPTConfig(50, **SMALL, n_kv_head=1),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def numel(modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@every_shape
def test_each_part_has_as_many_parameters_as_its_real_tensors(config):
    model, counts = GPT(config), count_parameters(config)
    layers = model.layers
    norms = [n for b in layers for n in (b.input_layernorm, b.post_attention_layernorm)]
    head = 0 if config.tied else model.lm_head.weight.numel()
    assert counts == {
        "embedding": model.embed_tokens.weight.numel(),
        "attention": numel(block.self_attn for block in layers),
        "mlp": numel(block.mlp for block in layers),
        "norms": numel([*norms, model.norm]),
        "head": head,
        "total": numel([model]),
        "non_embedding": numel([model]) - model.embed_tokens.weight.numel(),
    }


def test_llama_7b_has_its_published_6_738_415_616_parameters():
    sizes = {"n_layer": 32, "n_head": 32, "n_embd": 4096, "n_hidden": 11_008}
    llama = GPTConfig(32_000, **sizes, context=2048, tied=False)
    assert count_parameters(llama)["total"] == 6_738_415_616


def test_llama_3_8b_with_grouped_heads_has_its_published_8_030_261_248_parameters():
    sizes = {"n_layer": 32, "n_head": 32, "n_kv_head": 8, "n_embd": 4096}
    llama = GPTConfig(128_256, **sizes, n_hidden=14_336, tied=False)
    assert count_parameters(llama)["total"] == 8_030_261_248


@every_shape
@pytest.mark.parametrize("T", [1, 5, 16])
def test_flops_equal_torchs_own_count_but_for_the_masked_half_of_attention(config, T):
    # torch counts the T x T square although the mask throws half of it away. We count
    # the (T + 1) / 2 keys that a token sees on average, so the difference is exactly
    # 3 (forward and backward) * 4 L C (T - (T + 1) / 2) a token, and nothing else.
    model, B = GPT(config), 2
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randint(50, (B, T))).sum().backward()
    masked = 3 * 4 * config.n_layer * config.n_embd * (T - (T + 1) / 2)
    counted = counter.get_total_flops() / (B * T)
    assert counted == pytest.approx(flops_per_token(config, T) + masked, rel=1e-12)


def test_an_encoder_pays_for_the_half_of_attention_that_a_decoder_leaves_out():
    config, T = GPTConfig(50, **SMALL, causal=False), 7
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GPT(config)(torch.randint(50, (2, T))).sum().backward()
    counted = counter.get_total_flops() / (2 * T)
    assert counted == pytest.approx(flops_per_token(config, T), rel=1e-12)


@every_shape
def test_forward_flops_are_a_third_of_those_of_training(config):
    one, three = flops_per_token(config, 7, training=False), flops_per_token(config, 7)
    assert three == 3 * one
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GPT(config)(torch.randint(50, (1, 7)))
    masked = 4 * config.n_layer * config.n_embd * (7 - (7 + 1) / 2)
    assert counter.get_total_flops() / 7 == pytest.approx(one + masked, rel=1e-12)


def test_training_flops_are_about_six_times_the_parameters():
    config = GPTConfig(256, n_layer=8, n_head=8, n_embd=512, tied=False)
    n = count_parameters(config)["non_embedding"]
    # Not exactly: norms do not multiply matrices, attention scores have no parameters.
    assert 1 < flops_per_token(config, T=32) / (6 * n) < 1.02


@every_shape
def test_the_key_value_cache_takes_the_bytes_that_were_announced(config):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        cache = KVCache(config, 3, 11, torch.empty(0, dtype=dtype))
        assert cache.kv.nbytes == kv_cache_bytes(config, 3, 11, dtype.itemsize)


def test_missing_sizes_are_filled_in_with_llamas_proportions():
    config = GPTConfig(50, n_head=4, n_embd=128)
    assert config.n_kv_head == 4
    assert config.n_hidden == 352  # 8/3 * 128 = 341.3, rounded up to a multiple of 32
    assert GPTConfig(50, n_head=1, n_embd=96).n_hidden == 256  # exact, not rounded up
    assert GPTConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an int of at least 1, got 0"),
        ({"vocab_size": 50.0}, "vocab_size"),
        ({"n_layer": -1}, "n_layer"),
        ({"n_layer": True}, "n_layer"),
        ({"n_head": 0}, "n_head"),
        ({"n_kv_head": 0}, "n_kv_head"),
        ({"n_kv_head": 3}, "n_kv_head must be a divisor of n_head = 4"),
        ({"n_kv_head": 8}, "n_kv_head"),
        ({"n_embd": 30}, "n_embd must be a multiple of 2 \\* n_head = 8"),
        ({"n_embd": 36}, "n_embd"),  # D = 9 is odd
        ({"n_embd": "32"}, "n_embd"),
        ({"n_hidden": 0}, "n_hidden"),
        ({"context": 0}, "context"),
        ({"context": None}, "context"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"norm_eps": 0.0}, "norm_eps"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**({"vocab_size": 50} | SMALL | sizes))


@pytest.mark.parametrize("T", [0, -1, 2.5])
def test_a_sequence_length_that_is_no_count_has_no_flops(T):
    with pytest.raises(ValueError, match="T must be an int of at least 1"):
        flops_per_token(SHAPES["tied"], T)
