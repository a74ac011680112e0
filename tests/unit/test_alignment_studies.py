"""The studies of alignment: exact distances, equal tokens, a reward that is learned."""

import importlib.util
import json
import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from minillm.alignment.rollouts import Rollouts
from minillm.school.recipes import arithmetic
from minillm.school.recipes.arithmetic import Arithmetic, sampled_accuracy, sums
from minillm.school.recipes.base import Base
from minillm.school.recipes.reward import Reward
from minillm.school.recipes.sft import Sft
from minillm.school.studies import STUDIES
from minillm.world.preferences import true_reward


def study(name: str) -> ModuleType:
    """A study as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def closed() -> ModuleType:
    module = study("05_closed_world")
    module.STEPS, module.B, module.GROUP = 1, 8, 4
    return module


@pytest.fixture
def equal() -> ModuleType:
    module = study("11_equal_tokens")
    module.BUDGET, module.EVERY, module.PROMPTS, module.GROUP = 60, 30, 2, 2
    begun = Arithmetic(until=0.0, n_layer=1, n_head=2, n_embd=16).train(None, False)
    module.start = lambda seed: begun
    return module


def finite(measured: dict) -> bool:
    """Whether all that was measured is numbers, also once it was in a file."""
    flat = []
    for value in json.loads(json.dumps(measured)).values():
        flat += value if isinstance(value, list) else [value]
    return all(map(math.isfinite, flat))


# --- 05 -----------------------------------------------------------------------------


def test_every_response_stands_where_its_words_say(closed):
    rows = closed.rows()
    assert len(rows) == closed.V**closed.L
    assert closed.place(rows).tolist() == list(range(len(rows)))


def test_the_reference_is_a_distribution_over_all_responses(closed):
    logprobs = closed.distribution(closed.reference(seed=0, steps=2))
    assert logprobs.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("method", ["DPO", "PPO", "GRPO, KL in reward"])
def test_every_method_runs_in_the_closed_world(closed, method):
    assert finite(closed.run(0, method, beta=1.0))


def test_with_k3_in_the_loss_the_fixed_point_is_where_its_gradient_is_zero(closed):
    ref, Q = torch.tensor([[[0.2, 0.3, 0.5]], [[1, 4, 2]]], dtype=torch.float64)
    policy = closed.settle(ref, Q, beta=0.7)
    value = (policy * Q).sum()
    assert policy.sum().item() == pytest.approx(1)
    # the policy gradient of each logit, and that of beta KL(pi_ref || pi)
    pull = policy * (Q - value) + 0.7 * (ref - policy)
    assert pull.abs().max() < 1e-9


def test_the_fixed_point_over_words_is_a_distribution_near_the_reference_if_kl_is_dear(
    closed,
):
    log_ref = closed.distribution(closed.reference(seed=0, steps=2))
    settled = closed.k3_fixed_point(log_ref, beta=1e4)
    assert settled.exp().sum().item() == pytest.approx(1)
    assert (settled - log_ref).abs().max() < 0.01
    assert (
        closed.k3_fixed_point(log_ref, 0.1).exp() @ closed.true_rewards().double() > 4
    )


def test_the_policy_is_measured_before_and_after_by_the_same_optimum(closed):
    measured = closed.run(0, "GRPO, KL in loss", beta=3.0)
    assert 0 < measured["gap"] < 2 * measured["start_gap"]
    assert measured["objective"] <= measured["best_objective"]


# --- 10 -----------------------------------------------------------------------------


def test_curves_are_means_over_windows_and_know_their_summit():
    module = study("10_overoptimisation")
    module.STEPS, module.WINDOW = 6, 2
    seen = {name: [0.0] * 6 for name in ("proxy", "right", "length")}
    seen |= {"true": [1.0, 3.0, 4.0, 4.0, 0.0, 1.0], "kl": [float(i) for i in range(6)]}
    told = module.summary(seen)
    assert told["steps"] == [1, 3, 5] and told["true"] == [2.0, 4.0, 0.5]
    assert (told["true_best"], told["kl_best"], told["true_last"]) == (4.0, 2.5, 0.5)


@pytest.fixture
def proxies(monkeypatch) -> ModuleType:
    """The study of a learned reward, with models that have learned nothing."""
    module, size = (
        study("10_overoptimisation"),
        {"n_layer": 1, "n_head": 2, "n_embd": 8},
    )
    base = Base(steps=2, documents=400, B=2, **size)
    sft = Sft(base=base, examples=24, B=12)
    module.Sft = lambda seed: replace(sft, seed=seed)
    module.Reward = lambda seed: Reward(sft=sft, pairs=24, seed=seed)
    sizes = {"STEPS": 2, "WINDOW": 1, "BATCH": 4, "ASKED": 6, "SHOWN": 12, "LONGEST": 3}
    for name, value in (sizes | {"SEEDS": (0, 1)}).items():
        monkeypatch.setattr(module, name, value)
    return module


def test_both_rewards_are_measured_on_what_the_policy_says(proxies):
    measured = proxies.run(0, beta=0.1, rule="worst")
    assert finite(measured) and len(measured["true"]) == len(measured["kl"]) == 2
    assert measured["kl"][0] == pytest.approx(0, abs=1e-4), "it begins as the reference"


def test_the_worst_of_some_models_is_what_is_maximised_and_their_mean_what_is_told(
    proxies,
):
    _, tokenizer = proxies.start(0)
    tokens = torch.tensor([tokenizer.encode(" Gladly: 2.")])
    acts = torch.arange(tokens.shape[1])[None] > 0
    rollouts = Rollouts(tokens, tokens > 0, acts, torch.zeros(1, tokens.shape[1] - 1))
    proxy = proxies.Proxy((), "worst", tokenizer)
    proxy.models = [lambda tokens, real, r=r: torch.tensor([r]) for r in (3.0, 1.0)]
    assert proxy([0], rollouts).tolist() == [1.0]
    assert proxy.seen[0]["proxy"] == 2.0
    question = proxies.asked()[0].question
    assert proxy.seen[0]["true"] == true_reward(question, rollouts.texts(tokenizer)[0])


# --- 11 and its start ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["GRPO", "PPO", "DPO", "rejection sampling"])
def test_every_method_stops_when_its_tokens_are_spent(equal, method):
    measured = equal.run(0, method, lr=1e-4, group=2)
    assert finite(measured) and measured["tokens"][0] == 0
    assert (
        equal.BUDGET <= measured["tokens"][-1] <= equal.BUDGET + 2 * 2 * equal.LONGEST
    )
    assert len(measured["tokens"]) == len(measured["accuracy"]) == 3


def test_pairs_hold_a_right_and_a_wrong_answer_to_the_same_sum(equal):
    right, wrong = equal.sides(torch.tensor([False, True, True]), first=6)
    assert (right, wrong) == ([7, 8], [6])


def test_without_a_right_answer_nothing_is_imitated_and_nothing_paired(equal):
    model, _ = equal.start(0)
    tokens = torch.ones(4, 3, dtype=torch.long)
    acts = torch.tensor([[False, False, True]] * 4)
    rollouts = Rollouts(tokens, torch.ones_like(acts), acts, torch.zeros(4, 2))
    for make in (equal.rejection_sampling, equal.own_pairs):
        assert make(model)(rollouts, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_no_held_out_sum_is_shown():
    shown, held_out = ({q.prompt for q in sums(side)} for side in (False, True))
    assert len(shown) + len(held_out) == 1000 and not shown & held_out


def test_the_start_is_the_same_each_time_and_says_what_it_could_not_reach(monkeypatch):
    tiny = Arithmetic(until=0.0, n_layer=1, n_head=2, n_embd=16)
    (one, tokenizer), (other, _) = (tiny.train(None, False) for _ in range(2))
    asked = sums(held_out=True)[:20]
    accuracies = [sampled_accuracy(m, tokenizer, asked, seed=3) for m in (one, other)]
    assert accuracies[0] == accuracies[1]
    monkeypatch.setattr(arithmetic, "PATIENCE", 5)
    with pytest.raises(ValueError, match="until must be reached"):
        Arithmetic(until=1.1, n_layer=1, n_head=2, n_embd=8, B=2).train(None, False)
