"""Trials of preference learning, and the studies that are made of them."""

import importlib.util
import json
import math
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from minillm.alignment import PreferConfig, frozen_copy, prefer
from minillm.alignment.preference_data import reference_logprobs
from minillm.data import Tokenizer
from minillm.model import GPT, GPTConfig
from minillm.school import preferring
from minillm.school.preferring import Trial, begin, judged
from minillm.school.recipes.sft import Sft
from minillm.school.studies import STUDIES
from minillm.world import World, WorldConfig
from minillm.world.instructions import instructions, is_held_out
from minillm.world.preferences import Annotator, true_reward

LORE = World(WorldConfig(people=20, silent=5, cities=4)).lore
TOKENIZER = Tokenizer(merges=())


def small(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    shape = GPTConfig(TOKENIZER.vocab_size, 1, 2, n_embd=16, context=256)
    return GPT(shape).eval()


def trial(model: GPT) -> Trial:
    asked = list(instructions(LORE, 4, "trial", held_out=True))
    pairs = judged(LORE, 12, stream="trial", held_out=True)
    return Trial(frozen_copy(model), TOKENIZER, LORE, asked, pairs)


def start(seed: int = 0) -> tuple[GPT, Trial]:
    return small(seed), trial(small(seed))


# Pairs


def test_pairs_to_measure_with_ask_nothing_that_pairs_to_train_on_ask():
    seen = judged(LORE, 300)
    unseen = judged(LORE, 60, held_out=True)
    assert not any(is_held_out(LORE, v.question) for _, v in seen)
    assert all(is_held_out(LORE, v.question) for _, v in unseen)
    prompts = [{v.question.prompt for _, v in pairs} for pairs in (seen, unseen)]
    assert not prompts[0] & prompts[1]


def test_no_text_is_compared_with_itself_and_good_responses_are_among_both():
    pairs = judged(LORE, 300)
    assert all(v.chosen != v.rejected for _, v in pairs)
    good = fmean(each.good in (v.chosen, v.rejected) for each, v in pairs)
    assert 0.4 < good < 0.65  # half of the first ones, and a few second ones


def test_the_annotator_changes_the_order_and_not_the_pair():
    fair, odd = (
        judged(LORE, 200, [Annotator(temperature=0.01, length_bias=bias)])
        for bias in (0.0, 50.0)
    )
    same = [{a.chosen, a.rejected} for _, a in fair]
    assert same == [{b.chosen, b.rejected} for _, b in odd]
    long = [len(v.chosen.split()) >= len(v.rejected.split()) for _, v in odd]
    truth = [true_reward(v.question, v.chosen) for _, v in fair]
    other = [true_reward(v.question, v.rejected) for _, v in fair]
    assert fmean(long) > 0.99 and fmean(map(float.__ge__, truth, other)) > 0.95


def test_annotators_take_turns():
    fair, odd = Annotator(temperature=0.01), Annotator(temperature=0.01, error=0.5)
    alone, both = judged(LORE, 100, [fair]), judged(LORE, 100, [fair, odd])
    agree = [a == b for a, b in zip(alone, both, strict=True)]
    assert all(agree[::2]) and 0.3 < fmean(agree[1::2]) < 0.7


def test_streams_are_different_and_can_be_repeated():
    assert judged(LORE, 5) == judged(LORE, 5)
    assert judged(LORE, 5) != judged(LORE, 5, stream="other")
    assert judged(LORE, 5) == judged(LORE, 8)[:5]


# Measures


def test_before_training_nothing_has_changed_and_no_order_counts_one_half():
    model, on = start()
    found = on.measure(model)
    zero = ("kl", "margin", "chosen_change", "rejected_change")
    assert [found[name] for name in zero] == pytest.approx([0.0] * 4, abs=1e-4)
    assert found["accuracy"] == found["agreement"] == 0.5
    assert 1 <= found["tokens"] <= 40 and found["right"] == 0.0
    assert found == on.measure(small())  # the same draws


def test_changes_and_orders_are_those_of_the_log_probs():
    model, other = small(0), small(1)
    on = trial(model)
    found = on.preferred(other)
    flat = [row for pair in on.batches(on.pairs).rows for row in pair]
    policy, ref = (
        reference_logprobs(m, flat, TOKENIZER.pad).tolist() for m in (other, model)
    )
    change = [a - b for a, b in zip(policy, ref, strict=True)]
    margins = [a - b for a, b in zip(change[::2], change[1::2], strict=True)]
    assert found["chosen_change"] == pytest.approx(fmean(change[::2]), rel=1e-4)
    assert found["margin"] == pytest.approx(fmean(margins), rel=1e-4)
    assert found["agreement"] == fmean(m > 0 for m in margins)
    told = [(v.question, v.chosen, v.rejected) for _, v in on.pairs]
    truth = [true_reward(q, a) - true_reward(q, b) for q, a, b in told]
    right = [m * t > 0 for m, t in zip(margins, truth, strict=True) if t != 0]
    assert found["accuracy"] == pytest.approx(fmean(right))
    means = [p / sum(row.mask) for p, row in zip(policy, flat, strict=True)]
    ahead = [a - b for a, b in zip(means[::2], means[1::2], strict=True)]
    likelier = [x * t > 0 for x, t in zip(ahead, truth, strict=True) if t != 0]
    assert found["ranking"] == pytest.approx(fmean(likelier))


def test_what_is_learned_shows_in_the_trial():
    model, on = start()
    on = Trial(on.ref, TOKENIZER, LORE, on.asked, judged(LORE, 12))
    batches = on.batches(on.pairs, B=12)
    config = PreferConfig(steps=25, lr=1e-2, max_norm=10.0)
    prefer(model, on.ref, batches, config, progress=False)
    found = on.measure(model)
    assert found["agreement"] > 0.8 and found["margin"] > 1
    difference = found["chosen_change"] - found["rejected_change"]
    assert difference == pytest.approx(found["margin"], abs=1e-3) and found["kl"] > 0


def test_a_trial_begins_with_the_model_of_the_zoo(monkeypatch):
    asked = []

    def load(recipe, seed, progress):
        asked.append((recipe, seed))
        world = SimpleNamespace(lore=LORE)
        return SimpleNamespace(model=small(), tokenizer=TOKENIZER, world=world)

    monkeypatch.setattr(preferring.zoo, "load", load)
    model, on = begin(7, asked=3, pairs=5)
    assert asked == [(Sft(), 7)] and (len(on.asked), len(on.pairs)) == (3, 5)
    assert on.ref is not model and on.ref.norm.weight.equal(model.norm.weight)
    assert all(is_held_out(LORE, each.question) for each in on.asked)


# Studies


def study(name: str):
    spec = importlib.util.spec_from_file_location("study", STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(measured: dict) -> list[float]:
    values = json.loads(json.dumps(measured)).values()
    flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
    assert all(map(math.isfinite, flat))
    return flat


SMALLER = {
    "06_dpo_family": {"STEPS": 2, "B": 2},
    "07_displacement": {"STEPS": 2, "B": 2, "EVERY": 1, "ASKED": 3},
    "09_annotators": {"STEPS": 2, "B": 2},
}
TRIALS = [(name, arm) for name in SMALLER for arm in study(name).ARMS]


@pytest.mark.parametrize(("name", "arm"), TRIALS)
def test_every_arm_of_every_trial_runs(name, arm, monkeypatch):
    module = study(name)
    monkeypatch.setattr(module, "begin", start)
    for constant, value in SMALLER[name].items():
        monkeypatch.setattr(module, constant, value)
    measured = module.run(0, **module.ARMS[arm])
    assert len(numbers(measured)) >= 11
    untouched = arm in ("SFT", "nobody")
    assert (abs(measured["chosen_change"]) < 1e-4) == untouched


def test_mass_is_counted_from_the_start_to_the_end(monkeypatch):
    module = study("07_displacement")
    monkeypatch.setattr(module, "begin", start)
    for constant, value in SMALLER["07_displacement"].items():
        monkeypatch.setattr(module, constant, value)
    found = module.run(0)
    assert found["steps"] == [0, 1, 2] and found["chosen"][0] == 0.0
    assert found["chosen"][-1] == pytest.approx(found["chosen_change"], abs=1e-4)
    assert all(0 <= mass <= 1 for mass in found["elsewhere"])


def test_a_family_of_annotators_wants_the_truth_in_the_mean():
    family = study("09_annotators").ANNOTATORS["many tastes"]
    _, verdict = judged(LORE, 1)[0]
    liked = fmean(a.utility(verdict.question, verdict.chosen) for a in family)
    assert liked == pytest.approx(true_reward(verdict.question, verdict.chosen))


# Sums


@pytest.fixture
def sums(monkeypatch):
    module = study("08_where_dpo_fails")
    found = SimpleNamespace(model=small(), tokenizer=TOKENIZER)
    monkeypatch.setattr(module.zoo, "load", lambda *_, **__: found)
    for constant, value in {"STEPS": 2, "SUMS": 2, "GROUP": 4, "LARGEST": 4}.items():
        monkeypatch.setattr(module, constant, value)
    # A model that cannot add up would never be right, and nothing would be learned.
    monkeypatch.setattr(module, "is_answer", lambda q, text: float(len(text) % 2))
    return module


@pytest.mark.parametrize("arm", study("08_where_dpo_fails").ARMS)
def test_every_arm_of_the_sums_runs(sums, arm):
    measured = sums.run(0, **sums.ARMS[arm])
    assert len(numbers(measured)) == 12
    assert (measured["generated"] == 0) == (arm == "DPO, pairs from elsewhere")


def test_no_sum_is_trained_on_and_measured_with(sums):
    held_out, others = sums.sums(True), sums.sums(False)
    assert not {q.prompt for q in held_out} & {q.prompt for q in others}
    assert len(held_out) + len(others) == 25 + 15  # sums, and differences from 0


def test_a_pair_holds_the_right_result_and_another(sums):
    on = sums.Sums(small(), TOKENIZER)
    for good, bad in on.elsewhere(sums.sums(False), 30, "test"):
        texts = [TOKENIZER.decode(row.ids[1:-1]) for row in (good, bad)]
        prompts, results = zip(*(t.split("=") for t in texts), strict=True)
        assert prompts[0] == prompts[1] and results[0] != results[1]
        assert eval(prompts[0].removeprefix("Compute ")) == float(results[0])
        assert sum(good.mask) == len(results[0]) + 1  # the end is a target, too
    found = sums.Results([["a", "b"], []], [["c"], ["d"]], 9)
    assert found.pairs() == [("a", "c")] and found.share == 0.5


def test_shares_of_orders_are_those_of_margin_and_probability(sums):
    model, on = small(1), sums.Sums(small(0), TOKENIZER)
    rows = on.elsewhere(sums.sums(False), 20, "test")
    flat = [side for row in rows for side in row]
    a, b = (reference_logprobs(m, flat, 0).view(-1, 2) for m in (model, on.ref))
    margin, ahead = (a - b)[:, 0] - (a - b)[:, 1], a[:, 0] - a[:, 1]
    expected = [(x > 0).float().mean().item() for x in (margin, ahead)]
    found = on.order(model, rows)
    assert [found[name] for name in ("accuracy", "ranking")] == pytest.approx(expected)
    changes = [found[name] for name in ("chosen_change", "rejected_change")]
    assert changes == pytest.approx((a - b).mean(0).tolist(), rel=1e-4)
    still = on.order(on.ref, rows)
    assert still["accuracy"] == 0.0 and still["ranking"] == found["ranking_before"]
