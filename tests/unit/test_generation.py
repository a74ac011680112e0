"""Writing with and without a cache, alone and in a padded batch: always the same."""

import pytest
import torch
from torch import nn

from minillm.model import (
    GPT,
    GREEDY,
    GPTConfig,
    KVCache,
    Sampling,
    generate,
    pad_left,
    sampling_logprobs,
)
from minillm.model import generation as generation_module

V, CONTEXT = 29, 24
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64; kernels differ in the order of sums


@pytest.fixture(params=[2, 1], ids=["GQA", "MQA"])
def model(request) -> GPT:
    return spread_model(request.param)


def spread_model(n_kv_head: int = 2) -> GPT:
    """A float64 model with opinions: large weights, so that errors would show."""
    config = GPTConfig(
        V, n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32, context=CONTEXT
    )
    model = GPT(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13, 14, 15, 16, 17, 18]]


# --- the cache ----------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 3, 2], [4, 3, 3, 1, 1], [12]])
@torch.no_grad()
def test_cached_logits_equal_a_full_forward_pass_at_every_step(model, chunks, padded):
    # M06: with is_causal=True a chunk would see only the beginning of the cache.
    tokens = torch.randint(V, (3, 12))
    mask = None
    if padded:
        mask = torch.ones(3, 12, dtype=torch.bool)
        mask[0, :4] = mask[1, :1] = False
    whole = model(tokens, mask)
    cache, end = KVCache(model.config, 3, 12, model.norm.weight), 0
    for n in chunks:
        start, end = end, end + n
        seen = mask[:, :end] if padded else None
        part = model(tokens[:, start:end], seen, cache)
        torch.testing.assert_close(part, whole[:, start:end], **EXACT)
    assert cache.length == 12


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_k=9, top_p=0.95)])
def test_cached_and_uncached_generation_write_the_same_tokens(model, sampling):
    def write(cached: bool):
        generator = torch.Generator().manual_seed(5)
        return generate(
            model, PROMPTS, 12, sampling, stop=3, generator=generator, cached=cached
        )

    fast, slow = write(True), write(False)
    assert fast.tokens.equal(slow.tokens) and fast.mask.equal(slow.mask)


# --- padding ------------------------------------------------------------------------


@torch.no_grad()
def test_each_row_of_a_left_padded_batch_has_the_logits_that_it_has_alone(model):
    # M13: one position counter for all rows would shift the short ones.
    tokens, mask = pad_left(PROMPTS, pad=0)
    together = model(tokens, mask)
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([prompt]))[0]
        torch.testing.assert_close(together[row, -len(prompt) :], alone, **EXACT)


@torch.no_grad()
def test_right_padding_needs_no_mask_and_changes_nothing_before_it(model):
    tokens = torch.randint(V, (2, 9))
    padded = torch.cat([tokens, torch.randint(V, (2, 4))], dim=1)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[:, 9:] = False
    expected = model(tokens)
    torch.testing.assert_close(model(padded)[:, :9], expected, **EXACT)
    torch.testing.assert_close(model(padded, mask)[:, :9], expected, **EXACT)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("stop", [None, 3, 20])
def test_each_row_of_a_batch_writes_what_it_writes_alone(model, cached, stop):
    together = generate(model, PROMPTS, 15, GREEDY, stop, cached=cached)
    alone = [
        generate(model, [prompt], 15, GREEDY, stop, cached=cached).completions()[0]
        for prompt in PROMPTS
    ]
    assert together.completions() == alone
    assert len(set(map(tuple, alone))) > 1  # else the test could not fail


@pytest.mark.parametrize("pad", [0, 7])
def test_the_id_of_the_padding_does_not_matter(model, pad):
    # 7 occurs in a prompt: only the mask may tell padding from text. The penalty, too.
    rules = Sampling(0.0, repetition_penalty=1.5)
    written = generate(model, PROMPTS, 10, rules, pad=pad).completions()
    assert written == generate(model, PROMPTS, 10, rules, pad=28).completions()


def test_prompts_are_padded_on_the_left():
    tokens, mask = pad_left([[1, 2, 3], [4], [5, 6]], pad=9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4], [9, 5, 6]]
    assert mask.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


# --- stopping -----------------------------------------------------------------------


def stop_token_for(model: GPT) -> int:
    """A token that some rows write early and others late or never."""
    written = generate(model, PROMPTS, 15, GREEDY).completions()
    ends = {
        t: sorted(row.index(t) if t in row else 15 for row in written)
        for t in range(V)
        if any(t in row for row in written)
    }
    return max(ends, key=lambda t: ends[t][-1] - ends[t][0])


def test_a_row_ends_with_its_first_stop_token_and_only_masked_padding_follows(model):
    stop = stop_token_for(model)
    free = generate(model, PROMPTS, 15, GREEDY).completions()
    stopped = generate(model, PROMPTS, 15, GREEDY, stop=stop, pad=28)
    start = stopped.prompt_length
    assert start == 7
    lengths = set()
    for row, (mine, whole) in enumerate(zip(stopped.completions(), free, strict=True)):
        n = whole.index(stop) + 1 if stop in whole else 15
        lengths.add(n)
        assert mine == whole[:n]
        assert stopped.tokens[row, start + n :].eq(28).all()
        assert not stopped.mask[row, start + n :].any()
        assert stopped.mask[row, start : start + n].all()
    assert len(lengths) > 1


def test_generation_ends_early_when_every_row_has_stopped(model):
    first = generate(model, [[1, 2]], 1, GREEDY).completions()[0][0]
    stopped = generate(model, [[1, 2], [1, 2]], 15, GREEDY, stop=first)
    assert stopped.tokens.shape == (2, 3)
    assert stopped.completions() == [[first], [first]]


def test_a_stop_token_in_the_prompt_stops_nothing(model):
    assert len(generate(model, [[3, 3]], 5, GREEDY, stop=28).completions()[0]) >= 1


def test_the_context_can_be_filled_to_its_last_place(model):
    assert generate(model, [[1] * 20], 4).tokens.shape == (1, CONTEXT)
    with pytest.raises(ValueError, match=r"must be at most 24, the model's context"):
        generate(model, [[1] * 20], 5)


# --- chance -------------------------------------------------------------------------


def test_equal_generators_write_equal_texts_and_the_global_one_is_left_alone(model):
    def write(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, 12, generator=generator).tokens

    state = torch.get_rng_state()
    assert write(1).equal(write(1))
    assert not write(1).equal(write(2))
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(7)
    first = generate(model, PROMPTS, 12).tokens
    torch.manual_seed(7)
    assert generate(model, PROMPTS, 12).tokens.equal(first)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.7, top_k=8),
        Sampling(1.5, top_p=0.8),
        Sampling(1.2, min_p=0.05, repetition_penalty=1.4),
    ],
    ids=repr,
)
@torch.no_grad()
def test_texts_are_drawn_from_the_distribution_that_sampling_logprobs_states(sampling):
    # 4,000 equal prompts, one token each. Pearson's statistic over the k tokens of
    # positive probability has mean k - 1 and variance 2 (k - 1) and a little; seven
    # deviations leave a right sampler less than one chance in a thousand to fail
    # (Chebyshev would say 1/49, the chi-square's tail is far thinner), and the seed is
    # fixed besides. Expected counts below 5 are pooled, as usual.
    model, n = spread_model(), 4000
    # Large opinions would leave one token only.
    model.lm_head.weight.data *= 0.3
    prompt = [5, 6, 7, 5]
    written = generate(model, [prompt] * n, 1, sampling).tokens[:, -1]
    tokens = torch.tensor([prompt])
    p = sampling_logprobs(model(tokens)[:, -1], sampling, tokens)[0].exp()
    counts = torch.bincount(written, minlength=V).double()
    assert counts[p == 0].sum() == 0
    common = n * p >= 5
    expected = torch.cat([n * p[common], n * p[~common].sum()[None]])
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    terms = ((observed - expected) ** 2 / expected)[expected > 0]
    k = int((expected > 0).sum())
    assert k > 3
    assert terms.sum() < (k - 1) + 7 * (2 * (k - 1)) ** 0.5
    wrong = observed.roll(1)  # and the statistic can tell: the neighbour's counts
    assert ((wrong - expected) ** 2 / expected)[expected > 0].sum() > 10 * k


# --- manners ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_as_before_even_after_an_error(training, monkeypatch):
    model = spread_model().train(training)
    generate(model, [[1]], 2)
    assert model.training is training and model.layers[0].training is training

    def fail(*args):
        assert not model.training
        raise RuntimeError("midway")

    monkeypatch.setattr(generation_module, "sampling_logprobs", fail)
    with pytest.raises(RuntimeError, match="midway"):
        generate(model, [[1]], 2)
    assert model.training is training and model.layers[0].training is training


def test_generation_keeps_no_gradients_and_changes_no_prompt(model):
    prompts = [[1, 2], [3]]
    tokens = generate(model, prompts, 3).tokens
    assert not tokens.requires_grad and prompts == [[1, 2], [3]]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "prompts must be a list of non-empty lists of token ids"),
        ({"prompts": [[1], []]}, "prompts must be a list of non-empty lists"),
        ({"prompts": [1, 2, 3]}, "prompts must be a list of non-empty lists"),
        ({"prompts": "text"}, "prompts must be a list of non-empty lists"),
        ({"prompts": ["text"]}, "prompts must be a list of non-empty lists"),
        ({"prompts": torch.ones(2, 2)}, "prompts must be a list of non-empty lists"),
        ({"prompts": [["a"]]}, r"prompts must be lists of ids in 0..28"),
        ({"prompts": [[1], [29]]}, "prompts must be lists of ids in 0..28"),
        ({"prompts": [[-1]]}, "prompts must be lists of ids in 0..28"),
        ({"prompts": [[1.0]]}, "prompts must be lists of ids in 0..28"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be an int of at least 1"),
        ({"max_new_tokens": 24}, r"prompt length \+ max_new_tokens must be at most"),
        ({"stop": 29}, r"stop must be a token id in 0..28"),
        ({"stop": -1}, "stop must be a token id"),
        ({"stop": "."}, "stop must be a token id"),
        ({"pad": 29}, "pad must be a token id"),
        ({"pad": -100}, "pad must be a token id"),
        ({"pad": None}, "pad must be a token id"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met_are_refused_at_the_door(change, message):
    request = {"prompts": [[1]], "max_new_tokens": 2} | change
    with pytest.raises(ValueError, match=message):
        generate(spread_model(), **request)
