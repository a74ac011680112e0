"""Adapters that cannot be merged: bottlenecks and their fusion, prefixes, prompts."""

import copy

import pytest
import torch
from torch import nn

from minillm.finetuning.adapted import count_trainable
from minillm.finetuning.bottleneck import (
    Bottleneck,
    Fusion,
    apply_adapters,
    bottlenecks,
    fuse_adapters,
)
from minillm.finetuning.prefix import apply_prefix, freeze_prefix
from minillm.finetuning.prompts import apply_prompt, freeze_prompt
from minillm.model import GPT, GREEDY, GPTConfig, generate
from minillm.training import next_token_loss

SHAPE = GPTConfig(40, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, context=32)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])


def plain(seed=0):
    torch.manual_seed(seed)
    return GPT(SHAPE).double()


def shaken(model, seed=1):
    dice = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
            parameter.data += 0.3 * noise
    return model


def only_what_was_added_learns(model, logits):
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    next_token_loss(logits, TOKENS).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, f"{name} learns nothing"
        if name in base:
            assert torch.equal(parameter, base[name])


# Bottlenecks


def test_new_adapters_leave_the_logits_as_they_are_bit_for_bit():
    model = plain()
    before = model(TOKENS)
    assert torch.equal(apply_adapters(model, width=4).double()(TOKENS), before)


def test_only_adapters_learn():
    model = shaken(apply_adapters(plain(), width=4).double())
    only_what_was_added_learns(model, model(TOKENS))


def test_the_number_of_trained_parameters_of_adapters():
    model = apply_adapters(plain(), width=4, places=("mlp",))
    assert count_trainable(model)[0] == SHAPE.n_layer * (2 * 16 * 4 + 4 + 16)
    assert list(bottlenecks(model)) == ["layers.0.mlp", "layers.1.mlp"]


def test_an_adapter_adds_a_bottleneck_of_the_branch():
    adapter = shaken(Bottleneck(8, 2).double())
    y = torch.randn(3, 8).double()
    hidden = torch.nn.functional.gelu(y @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(
        adapter(y), hidden @ adapter.up.weight.T + adapter.up.bias
    )


def test_adapters_work_with_a_cache_and_padding_on_the_left():
    model = shaken(apply_adapters(plain(), width=4).double())
    prompts = [[5, 6, 7, 8], [9, 3]]
    cached = generate(model, prompts, 5, GREEDY).tokens
    alone = [generate(model, [p], 5, GREEDY).tokens[0, -5:] for p in prompts]
    uncached = generate(model, prompts, 5, GREEDY, cached=False).tokens
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, -5:], torch.stack(alone))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"width": 0}, "width"), ({"places": ("norm",)}, "places must be one of")],
)
def test_adapters_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        apply_adapters(plain(), **settings)


def test_adapters_on_adapters_are_refused():
    with pytest.raises(ValueError, match="plain copy"):
        apply_adapters(apply_adapters(plain()))


# Fusion


def tasks():
    return [shaken(apply_adapters(plain(), 4).double(), seed) for seed in (1, 2, 3)]


def test_fusion_of_one_adapter_is_that_adapter():
    # softmax over one is 1, and V begins as the identity
    (one, *_) = tasks()
    fused = fuse_adapters(plain(), [one]).double()
    torch.testing.assert_close(fused(TOKENS), one(TOKENS), rtol=1e-10, atol=1e-12)


def test_fusion_is_attention_over_adapters_anew_at_each_position():
    adapters = [shaken(Bottleneck(8, 2).double(), seed) for seed in (1, 2, 3)]
    fusion = shaken(Fusion(8, adapters).double(), 4)
    y = torch.randn(2, 5, 8).double()
    z = torch.stack([a(y) for a in adapters], dim=-2)
    weights = fusion.attention(y, z)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())
    assert weights.std(dim=(0, 1)).min() > 1e-3
    for t in range(5):
        scores = [fusion.query(y[0, t]) @ fusion.key(z[0, t, n]) for n in range(3)]
        alpha = torch.stack(scores).softmax(0)
        expected = sum(alpha[n] * fusion.value(z[0, t, n]) for n in range(3))
        torch.testing.assert_close(fusion(y)[0, t], expected)


def test_the_order_of_adapters_does_not_matter():
    adapters = [shaken(Bottleneck(8, 2).double(), seed) for seed in (1, 2)]
    fusion = shaken(Fusion(8, adapters).double(), 4)
    y = torch.randn(4, 8).double()
    before = fusion(y)
    fusion.adapters = nn.ModuleList(reversed(fusion.adapters))
    torch.testing.assert_close(fusion(y), before)


def test_fusion_learns_and_the_adapters_stay():
    model = shaken(fuse_adapters(plain(), tasks()).double(), 5)
    only_what_was_added_learns(model, model(TOKENS))
    learned = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(n.split(".")[-2] in ("query", "key", "value") for n in learned)


def test_fusion_needs_adapters_in_the_same_places():
    other = apply_adapters(plain(), 4, places=("mlp",))
    with pytest.raises(ValueError, match="same places"):
        fuse_adapters(plain(), [tasks()[0], other])
    with pytest.raises(ValueError, match="same places"):
        fuse_adapters(plain(), [])
    with pytest.raises(ValueError, match="at least one"):
        Fusion(8, [])


# Prefixes


@pytest.mark.parametrize("hidden", [None, 12])
def test_only_the_prefix_learns(hidden):
    model = shaken(apply_prefix(plain(), 3, hidden))
    only_what_was_added_learns(model, model(TOKENS))


def test_a_prefix_of_a_texts_own_keys_and_values_is_that_text():
    # What a prompt does to later tokens, it does through its keys and values: a prefix
    # that holds them, turned back by the prompt's length, is the prompt.
    from minillm.model.attention import KVCache, apply_rope

    model, prompt = plain(), torch.tensor([[7, 3, 11]])
    whole = model(torch.cat([prompt.expand(2, 3), TOKENS], dim=1))[:, 3:]
    cache = KVCache(SHAPE, 1, 3, model.embed_tokens.weight)
    model(prompt, None, cache)
    back = model.rotations[3:4].conj().expand(3, -1, -1)[None]
    prefixed = apply_prefix(copy.deepcopy(model), 3)
    for i, block in enumerate(prefixed.layers):
        k = cache.kv[0, i].transpose(1, 2)  # B T H D, pairs side by side
        halves = torch.cat([k[..., 0::2], k[..., 1::2]], dim=-1)
        turned = apply_rope(halves.float(), back).double().transpose(1, 2)
        block.self_attn.kv.data = torch.stack([turned[0], cache.kv[1, i, 0]])
    torch.testing.assert_close(prefixed(TOKENS), whole, rtol=1e-4, atol=1e-6)


def test_every_token_sees_the_prefix_and_none_its_future():
    model = shaken(apply_prefix(plain(), 3))
    later = TOKENS.clone()
    later[:, 3:] = 2
    torch.testing.assert_close(model(later)[:, :3], model(TOKENS)[:, :3])
    before = model(TOKENS)
    model.layers[0].self_attn.kv.data[1, :, 2] += 1
    assert (model(TOKENS) - before).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("hidden", [None, 12])
def test_prefixes_work_with_a_cache_and_padding_on_the_left(hidden):
    model = shaken(apply_prefix(plain(), 3, hidden))
    prompts = [[5, 6, 7, 8], [9, 3]]
    cached = generate(model, prompts, 5, GREEDY).tokens
    alone = [generate(model, [p], 5, GREEDY).tokens[0, -5:] for p in prompts]
    uncached = generate(model, prompts, 5, GREEDY, cached=False).tokens
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, -5:], torch.stack(alone))


def test_the_network_that_made_a_prefix_is_not_needed_afterwards():
    model = shaken(apply_prefix(plain(), 3, hidden=12))
    made = model(TOKENS)
    frozen = freeze_prefix(model)
    torch.testing.assert_close(frozen(TOKENS), made, rtol=1e-10, atol=1e-12)
    assert count_trainable(frozen)[0] == SHAPE.n_layer * 2 * 2 * 3 * 4


@pytest.mark.parametrize("settings", [{"length": 0}, {"length": 2, "hidden": 0}])
def test_prefixes_of_no_size_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        apply_prefix(plain(), **settings)


def test_a_second_prefix_and_one_for_an_encoder_are_refused():
    with pytest.raises(ValueError, match="plain copy"):
        apply_prefix(apply_prefix(plain()))
    encoder = GPT(GPTConfig(40, n_layer=1, n_head=2, n_embd=16, causal=False))
    with pytest.raises(ValueError, match="causal"):
        apply_prefix(encoder)


# Prompts


def with_prompt(ids):
    return torch.cat([torch.tensor([ids] * 2), TOKENS], dim=1)


def test_a_prompt_that_begins_with_words_is_these_words():
    model, words = plain(), [7, 3, 11]
    before = model(with_prompt(words))
    ids = apply_prompt(model, 3, start=words)
    assert ids == [40, 41, 42]
    assert torch.equal(model(with_prompt(ids)), before)


def test_words_are_repeated_or_cut_to_the_length():
    model = plain()
    before = plain()(with_prompt([7, 3, 7]))
    assert torch.equal(model(with_prompt(apply_prompt(model, 3, [7, 3]))), before)


@pytest.mark.parametrize("hidden", [None, 12])
def test_only_the_prompt_learns(hidden):
    model = plain()
    ids = apply_prompt(model, 3, hidden=hidden)
    shaken(model)
    only_what_was_added_learns(model, model(with_prompt(ids))[:, 3:])


def test_no_prompt_can_be_said():
    model = plain()
    ids = apply_prompt(model, 3)
    assert model(with_prompt(ids)).shape == (2, 8, 40)
    assert generate(model, [[*ids, 5]], 4, GREEDY).tokens[:, -4:].max() < 40


def test_plain_text_is_read_as_before():
    model = plain()
    before = model(TOKENS)
    apply_prompt(model, 3)
    assert torch.equal(shaken(model)(TOKENS), before)


def test_the_network_that_made_a_prompt_is_not_needed_afterwards():
    model = plain()
    ids = apply_prompt(model, 3, hidden=12)
    made = shaken(model)(with_prompt(ids))
    torch.testing.assert_close(freeze_prompt(model)(with_prompt(ids)), made)
    assert count_trainable(model)[0] == 3 * 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 0}, "at least 1"),
        ({"start": [40]}, "token ids in 0..39"),
        ({"start": []}, "token ids"),
        ({"hidden": 0}, "at least 1"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        apply_prompt(plain(), **({"length": 2} | settings))


def test_a_second_prompt_is_refused_and_so_is_freezing_none():
    model = plain()
    with pytest.raises(ValueError, match="apply_prompt"):
        freeze_prompt(model)
    apply_prompt(model)
    with pytest.raises(ValueError, match="plain copy"):
        apply_prompt(model)
