"""Stopping: the best weights come back bit for bit; collapse shows between samples."""

import math
import random
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from minillm.data import Tokenizer
from minillm.data.chat import Encoded
from minillm.data.examples import Examples
from minillm.finetuning import (
    StoppingRule,
    distinct_n,
    first_word_entropy,
    fit_to_best,
    mean_loss,
    self_overlap,
    sft_examples,
)
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer, load_model, next_token_loss

TOKENIZER = Tokenizer(merges=())
SETTINGS = {"lr": 5e-3, "matrix_lr": 0.02, "warmup": 0, "weight_decay": 0.0}
EVERY, STEPS = 5, 100
SEEDS = range(3)


def sums(seed: int) -> tuple[Examples, Examples]:
    """A few sums to learn from and others that are held out."""
    pairs = [(f"{a}+{b}", str(a + b)) for a in range(5, 10) for b in range(5, 10)]
    encoded = sft_examples(TOKENIZER, random.Random(seed).sample(pairs, 16))
    sides = (encoded[:8], encoded[8:])
    return tuple(Examples(side, 48, 8, TOKENIZER.pad, seed) for side in sides)


def trainer_of(seed: int, **options) -> Trainer:
    torch.manual_seed(seed)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context": 48}
    model = GPT(GPTConfig(TOKENIZER.vocab_size, **shape))
    config = TrainConfig(steps=STEPS, **SETTINGS)
    return Trainer(model, sums(seed)[0], config, progress=False, **options)


def copy_of(model: GPT) -> dict[str, torch.Tensor]:
    return {name: w.clone() for name, w in model.state_dict().items()}


@cache
def plain(seed: int) -> list[dict[str, torch.Tensor]]:
    """The weights before training and after each step of a run that nobody watches."""
    trainer = trainer_of(seed, on_step=lambda t: weights.append(copy_of(t.model)))
    weights = [copy_of(trainer.model)]
    trainer.fit()
    return weights


@cache
def stopped(seed: int):
    """The trainer and the looks of a run that is stopped."""
    trainer = trainer_of(seed)
    rule = StoppingRule(patience=3)
    return trainer, fit_to_best(trainer, sums(seed)[1], rule, EVERY), rule


def best_of(looks, rule):
    return looks[rule.best([look.held_out for look in looks])]


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_loss_turns_up_while_training_loss_falls(seed):
    _, looks, rule = stopped(seed)
    best, last = best_of(looks, rule), looks[-1]
    assert 0 < best.step < last.step < STEPS, "no turn was seen"
    assert last.held_out > best.held_out + 0.1
    assert last.train < best.train - 0.1
    assert last.gap > best.gap + 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_stopping_returns_the_weights_of_the_best_step_bit_for_bit(seed):
    """And so looking changes nothing: they are those of a run without looks."""
    trainer, looks, rule = stopped(seed)
    best = best_of(looks, rule)
    weights = trainer.model.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in plain(seed)[best.step].items())
    assert mean_loss(trainer.model, sums(seed)[1]) == best.held_out
    assert len(trainer.metrics.column("loss")) == trainer.step == looks[-1].step
    last = plain(seed)[trainer.step]
    assert any(not torch.equal(w, weights[n]) for n, w in last.items())


def test_a_run_that_is_never_stopped_ends_with_its_best_weights_too():
    trainer = trainer_of(0)
    looks = fit_to_best(trainer, sums(0)[1], StoppingRule(patience=99), every=30)
    assert [look.step for look in looks] == [0, 30, 60, 90, STEPS]
    best = plain(0)[best_of(looks, StoppingRule(99)).step]
    weights = trainer.model.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in best.items())


def test_weights_that_were_never_better_again_are_those_before_training():
    trainer = trainer_of(0)
    rule = StoppingRule(patience=1, min_delta=1e3)
    looks = fit_to_best(trainer, sums(0)[1], rule, every=2)
    assert [look.step for look in looks] == [0, 2]
    weights = trainer.model.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in plain(0)[0].items())


def test_the_folder_ends_with_the_best_weights(tmp_path):
    trainer = trainer_of(0, folder=tmp_path)
    trainer.config = replace(trainer.config, steps=4)
    fit_to_best(trainer, sums(0)[1], StoppingRule(min_delta=1e3), every=3)
    weights = load_model(trainer.checkpoint).state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in plain(0)[0].items())


def test_a_trainer_that_already_calls_something_is_refused():
    trainer = trainer_of(0, on_step=print)
    with pytest.raises(ValueError, match="on_step must be None"):
        fit_to_best(trainer, sums(0)[1], StoppingRule())


# --- what is measured ---------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 2, 3, 5])
def test_the_mean_is_over_targets_of_all_rows_each_once(B):
    """Rows of unequal lengths, and batches that do not divide them."""
    dice = random.Random(0)
    masks = [[dice.random() < 0.5 for _ in range(n)] + [True] for n in (1, 8, 3)]
    rows = [Encoded([5] * len(mask), mask) for mask in masks]
    rows += [Encoded([7, 8, 9, 1], [False, True, True, True])] * 2
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, n_layer=1, n_head=2, n_embd=16, context=16)).double()
    nats = n = 0
    for ids, mask in rows:
        tokens, targets = torch.tensor([ids]), torch.tensor([mask])
        count = targets[:, 1:].sum()
        nats += next_token_loss(model(tokens), tokens, targets) * count
        n += count
    examples = Examples(rows, 16, B, pad=0)
    assert mean_loss(model.train(), examples) == pytest.approx(
        (nats / n).item(), rel=1e-9
    )
    assert model.training
    mean_loss(model.eval(), examples)
    assert not model.training


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "best", "stops"),
    [
        ([1.0], 1, 0.0, 0, False),
        ([1.0, 1.0], 1, 0.0, 0, True),  # no better is not better
        ([3.0, 2.0, 2.5, 1.0], 1, 0.0, 3, False),
        ([3.0, 2.9, 2.8, 2.7], 3, 0.5, 0, True),  # small steps do not add up at once
        ([3.0, 2.8, 2.6, 2.4], 3, 0.5, 3, False),  # but they do against the best
    ],
)
def test_the_rule_on_curves_whose_answer_is_known(
    losses, patience, min_delta, best, stops
):
    rule = StoppingRule(patience, min_delta)
    assert rule.best(losses) == best
    assert rule.stops(losses) == stops


def test_without_a_least_difference_the_best_is_the_first_minimum():
    dice = random.Random(0)
    for _ in range(200):
        losses = [float(dice.randrange(5)) for _ in range(dice.randrange(1, 9))]
        assert StoppingRule().best(losses) == losses.index(min(losses))


@pytest.mark.parametrize("losses", [[], [1.0, math.nan], [math.inf]])
def test_a_loss_that_is_no_number_is_refused(losses):
    with pytest.raises(ValueError, match="losses must be finite"):
        StoppingRule().stops(losses)


@pytest.mark.parametrize("bad", [{"patience": 0}, {"min_delta": -1.0}])
def test_a_bad_rule_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        StoppingRule(**bad)


# --- mode collapse ------------------------------------------------------------------


def test_the_measures_keep_their_bounds_and_reach_them():
    same, other = ["the cat sat"] * 8, [f"a{i} b{i} c{i}" for i in range(8)]
    assert distinct_n(same) == pytest.approx(1 / 8) and distinct_n(other) == 1
    assert first_word_entropy(same) == 0
    assert first_word_entropy(other) == pytest.approx(math.log(8), rel=1e-12)
    assert self_overlap(same) == 1 and self_overlap(other) == 0
    dice = random.Random(0)
    for _ in range(100):
        texts = ["a b c d e"[: dice.randrange(10)] for _ in range(dice.randrange(2, 7))]
        assert 0 < distinct_n(texts) <= 1
        assert 0 <= first_word_entropy(texts) <= math.log(len(texts)) + 1e-12
        assert 0 <= self_overlap(texts) <= 1


def test_samples_that_collapse_step_by_step_are_seen_by_all_three():
    """From eight different answers to one: each measure moves one way only."""
    other = [f"a{i} b{i} c{i}" for i in range(8)]
    mixes = [other[:k] + other[:1] * (8 - k) for k in range(8, 0, -1)]
    for measure in (distinct_n, first_word_entropy, lambda texts: -self_overlap(texts)):
        values = [measure(texts) for texts in mixes]
        assert all(a > b for a, b in pairwise(values)), measure


def test_more_text_alone_lowers_distinct_n():
    """Why only equal numbers of samples compare."""
    texts = [" ".join(random.Random(i).choices("abcdef", k=20)) for i in range(40)]
    assert distinct_n(texts) < distinct_n(texts[:4]) / 2


@pytest.mark.parametrize("measure", [distinct_n, first_word_entropy, self_overlap])
def test_no_samples_are_refused(measure):
    with pytest.raises(ValueError, match="texts must be at least"):
        measure([])
