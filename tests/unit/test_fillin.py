"""Filling gaps: losses that agree with plain ones, spans that fit, counts of work."""

from itertools import pairwise
from random import Random

import pytest
import torch
import torch.nn.functional as F

from minillm.data.batches import Batch
from minillm.model import GPT, GPTConfig, flops_per_token
from minillm.training import TrainConfig, Trainer, next_token_loss
from minillm.training.electra import Electra
from minillm.training.fillin import draw_spans, row_flops, scored_loss, span_rows
from minillm.training.losses import IGNORE, shift_targets
from minillm.training.minimise import minimise
from minillm.training.objectives import mask_tokens

V, T = 32, 12
SHAPE = GPTConfig(V, n_layer=1, n_head=2, n_embd=16, context=32)
ENCODER = GPTConfig(V, n_layer=1, n_head=2, n_embd=16, context=32, causal=False)


@pytest.fixture
def tokens():
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


def model(config=SHAPE):
    torch.manual_seed(0)
    return GPT(config).double()


def test_with_shifted_targets_it_is_next_token_loss_with_its_gradient(tokens):
    mask = torch.rand(tokens.shape) < 0.5
    ours, plain = model(), model()
    loss = scored_loss(ours, tokens, shift_targets(tokens, mask))
    other = next_token_loss(plain(tokens), tokens, mask)
    loss.backward(), other.backward()
    torch.testing.assert_close(loss, other)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_masked_loss_asks_only_at_the_gaps(tokens):
    inputs, targets = mask_tokens(tokens, V - 1, V, 0.5)
    encoder = model(ENCODER)
    logits = encoder(inputs)
    plain = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE
    )
    torch.testing.assert_close(scored_loss(encoder, inputs, targets), plain)


def test_a_batch_without_targets_is_refused(tokens):
    with pytest.raises(ValueError, match="at least 1"):
        scored_loss(model(), tokens, torch.full_like(tokens, IGNORE))


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_spans_cover_the_rate_and_never_touch(rate):
    for seed in range(50):
        spans = draw_spans(100, rate, 3, Random(seed))
        assert sum(end - start for start, end in spans) == round(100 * rate)
        edges = [edge for span in spans for edge in span]
        assert edges == sorted(edges) and edges[-1] <= 100
        assert all(b[0] > a[1] for a, b in pairwise(spans))


def test_every_place_can_be_hidden():
    drawn = [span for s in range(300) for span in draw_spans(20, 0.2, 2, Random(s))]
    hidden = {t for start, end in drawn for t in range(start, end)}
    assert hidden == set(range(20)) - {0}  # the first token is never hidden


def test_spans_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="spans"):
        draw_spans(10, 0.9, 1, Random(0))


def test_span_rows_hold_every_token_once_and_score_the_hidden_ones(tokens):
    sentinels = [100, 101, 102, 103]
    rows, mask = span_rows(tokens, sentinels, Random(0), 0.25)
    for row, scored, text in zip(rows, mask, tokens, strict=True):
        assert sorted(t for t in row.tolist() if t < V) == sorted(text.tolist())
        assert scored.tolist() == sorted(scored.tolist())  # the answer stands last
        assert row[scored][0] == sentinels[0]


def test_a_detector_sees_both_sides_and_scores_every_position(tokens):
    torch.manual_seed(0)
    electra = Electra(ENCODER, ENCODER)
    scores = electra(tokens)
    assert scores.shape == tokens.shape
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % V
    assert not torch.equal(electra(other)[:, 0], scores[:, 0])


def test_the_generator_does_not_learn_from_the_detector(tokens):
    electra = Electra(ENCODER, ENCODER)
    inputs, targets = mask_tokens(tokens, V - 1, V, 0.5)
    alone = scored_loss(electra.generator, inputs, targets)
    expected = torch.autograd.grad(alone, electra.generator.embed_tokens.weight)[0]
    electra.loss(tokens, inputs, targets).backward()
    torch.testing.assert_close(electra.generator.embed_tokens.weight.grad, expected)


def test_a_detector_that_is_asked_at_gaps_only_gets_no_signal_elsewhere(tokens):
    electra = Electra(ENCODER, ENCODER)
    gaps = torch.zeros_like(tokens, dtype=torch.bool)
    gaps[:, 3] = True
    targets, inputs = tokens.masked_fill(~gaps, IGNORE), tokens.masked_fill(gaps, V - 1)
    seen = []
    electra.discriminator.lm_head.register_full_backward_hook(
        lambda module, into, out: seen.append(out[0].squeeze(-1) != 0)
    )
    electra.loss(tokens, inputs, targets, only_gaps=True).backward()
    assert torch.equal(seen[0], gaps)


def test_a_causal_detector_is_refused():
    with pytest.raises(ValueError, match="encoder"):
        Electra(SHAPE, SHAPE)


def test_work_with_every_position_scored_is_the_usual_count():
    assert row_flops(SHAPE, T, T) == flops_per_token(SHAPE, T) * T
    saved = row_flops(SHAPE, T, T) - row_flops(SHAPE, T, 1)
    assert saved == 6 * SHAPE.n_embd * V * (T - 1)


def test_the_short_loop_does_what_the_trainer_does(tokens):
    config = TrainConfig(steps=6, warmup=2)
    ours, theirs = model(), model()
    targets = shift_targets(tokens)
    minimise(ours, lambda step: scored_loss(ours, tokens, targets), config)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    batches = dict.fromkeys(range(6), batch)
    Trainer(theirs, batches, config, progress=False).fit()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
