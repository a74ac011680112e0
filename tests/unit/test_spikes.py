"""Spikes: noticed by a rule that they do not move, and undone bit by bit."""

import pytest
import torch
from safetensors.torch import load_file

from minillm.data.batches import Batch, Windows
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer
from minillm.training.spikes import Skipping, SpikeRule, fit_without_spikes

RULE = SpikeRule(window=8, least=4, k=6.0)


class Poisoned:
    """Batches of an orderly text, some of which are nonsense."""

    def __init__(self, bad=()):
        self.clean = Windows(torch.arange(500) % 7, T=9, B=4)
        self.bad = bad

    def __getitem__(self, i: int) -> Batch:
        if i not in self.bad:
            return self.clean[i]
        drawn = torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(i))
        return Batch(drawn, torch.ones_like(drawn, dtype=torch.bool))


def trainer_on(batches, folder, steps=45, **options) -> Trainer:
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, n_layer=1, n_head=2, n_embd=16, context=16))
    options = {"warmup": 2, "lr": 0.01, "save_every": 10} | options
    return Trainer(
        model, batches, TrainConfig(steps, **options), folder, progress=False
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_run_is_bit_for_bit_the_one_that_never_had_the_batch(tmp_path, accumulate):
    bad = {33 * accumulate}
    spiked = trainer_on(Poisoned(bad), tmp_path / "a", accumulate=accumulate)
    losses, skipped = fit_without_spikes(spiked, RULE)
    assert bad <= set(skipped) and len(skipped) % accumulate == 0
    without = Skipping(Poisoned(bad))
    without.skip(set(skipped))
    clean = trainer_on(without, tmp_path / "b", accumulate=accumulate)
    assert losses == clean.fit().column("loss")
    files = [load_file(tmp_path / run / "checkpoint.safetensors") for run in "ab"]
    assert files[0].keys() == files[1].keys()  # weights, moments, random states
    assert all(tensor.equal(files[1][name]) for name, tensor in files[0].items())


def test_without_a_spike_it_is_plain_training(tmp_path):
    one = trainer_on(Poisoned(), tmp_path / "a")
    losses, skipped = fit_without_spikes(one, RULE)
    assert skipped == []
    assert losses == trainer_on(Poisoned(), tmp_path / "b").fit().column("loss")


def test_a_span_leaves_out_what_was_read_before_the_spike_but_nothing_that_is_saved(
    tmp_path,
):
    trainer = trainer_on(Poisoned({33}), tmp_path)
    _, skipped = fit_without_spikes(trainer, RULE, span=100)
    assert skipped == [30, 31, 32, 33]  # the last checkpoint was made after step 29


def test_a_text_that_is_all_nonsense_from_some_place_on_is_an_error(tmp_path):
    trainer = trainer_on(Poisoned(range(32, 999)), tmp_path)
    with pytest.raises(FloatingPointError, match=r"spikes must be at most 3.*lower lr"):
        fit_without_spikes(trainer, RULE, most=3)
    with pytest.raises(ValueError, match="trainer must be one with a folder"):
        fit_without_spikes(trainer_on(Poisoned(), None))


def test_the_rule_looks_up_not_down_and_one_spike_does_not_hide_the_next():
    usual = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
    assert RULE(usual, 3.0) and not RULE(usual, 0.5) and not RULE(usual, 2.2)
    assert RULE([*usual, 50.0], 3.0)  # a mean and a deviation would have been moved
    assert not RULE(usual[:3], 99.0)  # too little is known
    for nothing in (float("nan"), float("inf")):
        assert RULE(usual, nothing)
    assert RULE([], float("nan"))


def test_places_that_are_left_out_are_never_read_again():
    batches = Skipping(list(range(20)))
    batches.skip({3, 4})
    batches.skip({0, batches.place(3)})  # the fourth that is left: 5
    assert [batches[i] for i in range(6)] == [1, 2, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "bad", [{"window": 0}, {"least": 0}, {"k": 0.0}, {"window": 4, "least": 5}], ids=str
)
def test_rules_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        SpikeRule(**bad)
