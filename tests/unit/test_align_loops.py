"""The loops of PPO and GRPO, against an optimum that can be written down.

The closed world has one question with 32 responses of three parts; a model of eleven
tokens can say 1331 things, all of which are listed. So the best policy is exact, and so
is the distance to it.
"""

import copy
import itertools
import signal

import pytest
import torch

from minillm.alignment.critic import Critic
from minillm.alignment.grpo_loop import grpo, grpo_step
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.loop import (
    minibatches,
    policy_logprobs,
    repeat,
    rewards_of,
    select,
    token_entropies,
    update,
)
from minillm.alignment.ppo_loop import appraise, ppo, ppo_step
from minillm.alignment.rollouts import sample_rollouts
from minillm.alignment.settings import GRPOConfig, PPOConfig
from minillm.model import GPT, GPTConfig, Sampling
from minillm.training import TrainingInterrupted
from minillm.world.closed import closed_prompt, optimum, value
from minillm.world.menus import Menu
from minillm.world.preferences import ENDINGS, openings
from minillm.world.questions import Question

QUESTION = Question("Compute 1+1=", "2", "arithmetic")
PARTS = (openings(QUESTION), (" 2", " 3"), ENDINGS)
WORDS = [word for part in PARTS for word in part]  # token i + 1; token 0 is the prompt
V = 1 + len(WORDS)
WORLD = closed_prompt(QUESTION, Menu(PARTS[1]))
KNOWN = dict(zip(WORLD.responses, WORLD.rewards, strict=True))  # all else is worth 0


def worth(said: tuple[int, ...]) -> float:
    return KNOWN.get("".join(WORDS[i - 1] if i else "?" for i in said), 0.0)


SAYABLE = list(itertools.product(range(V), repeat=3))
TABLE = torch.tensor([worth(said) for said in SAYABLE]).view(V, V, V)
FIRST = 2 * TABLE.amax((1, 2))


def reward(which, rollouts):
    """Look the response up; ``which`` would say to what question."""
    assert len(which) == len(rollouts.tokens)
    return TABLE[tuple(rollouts.tokens[:, 1:].T)]


def first_word(which, rollouts):
    """A world of one token: what the opening alone is worth, twice."""
    return FIRST[rollouts.tokens[:, 1]]


def exact(model: GPT, length: int = 3) -> torch.Tensor:
    """The log-probability of everything that can be said."""
    said = itertools.product(range(V), repeat=length)
    tokens = torch.tensor([[0, *ids] for ids in said])
    with torch.no_grad():
        return model_logprobs(model, tokens).sum(1).double()


@pytest.fixture(scope="module")
def reference() -> GPT:
    """A model that says each of the 32 responses about equally often."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(V, n_layer=1, n_head=2, n_embd=32, context=8))
    ids = [[1 + WORDS.index(word) for word in part] for part in PARTS]
    rows = torch.tensor([[0, *said] for said in itertools.product(*ids)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = -model_logprobs(model, rows).sum(1).mean()
        update(loss, [model], optimizer, max_norm=torch.inf)
    return model


def distance(logprobs, target) -> float:
    """KL(pi || target) in nats."""
    target = torch.as_tensor(target, dtype=torch.float64)
    return (logprobs.exp() * (logprobs - target)).sum().item()


def gaps(model: GPT, reference: GPT) -> tuple[float, float]:
    """How far from the optimum for beta = 1: in its value, and in nats."""
    ref, rewards = exact(reference).tolist(), TABLE.flatten().tolist()
    best, policy = optimum(ref, rewards, beta=1.0), exact(model)
    earned, kl = value(policy.tolist(), ref, rewards)
    return best.log_z - (earned - kl), distance(policy, best.logprobs)


PPO = PPOConfig(
    steps=50,
    batch=128,
    minibatch=64,
    lr=3e-3,
    critic_lr=1e-2,
    beta=1.0,
    max_new_tokens=3,
)
GRPO = GRPOConfig(
    steps=120, prompts=16, lr=3e-3, beta=1.0, kl="reward", max_new_tokens=3
)


def changed(config, **settings):
    return type(config)(**{**vars(config), **settings})


def run_ppo(reference, config=PPO, reward=reward, prompts=((0,),)):
    model = copy.deepcopy(reference)
    critic, prompts = Critic(model), [list(p) for p in prompts]
    log = ppo(model, critic, reference, prompts, reward, config, progress=False)
    return model, critic, log


def run_grpo(reference, config=GRPO, reward=reward, prompts=((0,),), ref=...):
    model, prompts = copy.deepcopy(reference), [list(p) for p in prompts]
    ref = reference if ref is ... else ref
    log = grpo(model, prompts, reward, config, ref=ref, progress=False)
    return model, log


def test_the_reference_is_far_from_the_optimum(reference):
    assert exact(reference).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    loss, nats = gaps(reference, reference)
    assert loss > 0.6 and nats == pytest.approx(loss, rel=1e-4)  # both are J* - J


def test_ppo_comes_near_the_optimum(reference):
    model, _, log = run_ppo(reference)
    loss, nats = gaps(model, reference)
    assert loss < 0.08 and nats < 0.08
    assert log.records[-1]["explained_variance"] > 0.6
    assert log.records[0]["explained_variance"] == 0.0  # the head starts at 0


@pytest.mark.parametrize("normalize", [True, False])
def test_grpo_with_kl_in_the_reward_comes_near_the_optimum(reference, normalize):
    model, log = run_grpo(reference, changed(GRPO, normalize=normalize))
    loss, nats = gaps(model, reference)
    assert loss < 0.05 and nats < 0.05
    measured = sum(log.column("kl")[-20:]) / 20
    assert measured == pytest.approx(0.6, abs=0.1)  # the optimum's is 0.604


def test_grpo_with_kl_in_the_loss_goes_to_another_policy(reference):
    r"""Where the gradient of E[r] - beta KL(ref || pi) vanishes: r + beta ref/pi = c.

    Centring by the mean of the group, which holds the response itself, makes rewards
    smaller by (G - 1) / G, and KL in the loss is not made smaller with them.
    """
    settings = {"normalize": False, "kl": "loss", "max_new_tokens": 1, "lr": 1e-2}
    config = changed(GRPO, **settings, group=16, steps=150)
    model, _ = run_grpo(reference, config, reward=first_word)
    ref, r, beta = exact(reference, 1), FIRST.double(), 16 / 15
    low, high = r.max().item(), r.max().item() + beta
    for _ in range(60):  # the c at which probabilities add up to 1
        c = (low + high) / 2
        total = (beta * ref.exp() / (c - r)).sum()
        low, high = (c, high) if total > 1 else (low, c)
    fixed, policy = (beta * ref.exp() / (c - r)).log(), exact(model, 1)
    best = optimum(ref.tolist(), r.tolist(), 1.0).logprobs
    assert distance(policy, fixed) < 0.02
    assert distance(policy, best) > 3 * distance(policy, fixed)
    assert distance(fixed, best) > 0.03


def test_without_a_price_the_policy_leaves_the_reference_and_stops_trying(reference):
    free = changed(GRPO, beta=0.0, steps=60)
    model, log = run_grpo(reference, free, ref=None)
    earned, kl = value(
        exact(model).tolist(), exact(reference).tolist(), TABLE.flatten().tolist()
    )
    best = TABLE.max().item()
    assert earned > best - 0.2 and kl > 1.5
    assert log.column("entropy")[-1] < log.column("entropy")[0] / 2
    assert log.column("kl")[-1] == 0.0  # without a reference it is not known


def one_rollout(model, n=16, **settings):
    dice = torch.Generator().manual_seed(0)
    return sample_rollouts(model, [[0]] * n, 3, generator=dice, **settings)


def test_the_responses_of_a_group_stand_together_and_answer_the_prompt_they_are_of(
    reference,
):
    # M39b: asked by ``repeat``, a group of four would hold answers to four prompts
    prompts, seen = [[1], [2], [3], [4], [5]], []

    def watched(which, rollouts):
        seen.append(which)
        first = rollouts.tokens[:, 0].tolist()
        assert first == [prompts[i][0] for i in which]
        return [0.0] * len(which)

    config = changed(GRPO, steps=3, prompts=6, group=4, beta=0.0)
    run_grpo(reference, config, watched, prompts)
    run_ppo(reference, changed(PPO, steps=1), watched, prompts)
    for which in seen[:3]:
        assert all(len({*which[i : i + 4]}) == 1 for i in range(0, 24, 4))
        assert len({*which}) > 1


@pytest.fixture
def strayed(reference):
    """A policy that is away from its reference, and a rollout of it."""
    model = copy.deepcopy(reference)
    with torch.no_grad():
        model.norm.weight.mul_(0.5)  # flatter: it says what the reference does not
    return model, one_rollout(model)


def test_returns_are_the_score_less_the_price_and_advantages_are_white(
    reference, strayed
):
    model, rollouts = strayed
    scores, mask = reward([0] * 16, rollouts), rollouts.actions[:, 1:]
    found = {}
    for whiten in (True, False):
        config = changed(PPO, whiten=whiten, lam=1.0)
        parts = (Critic(model), reference, rollouts, scores, 0.7, config)
        found[whiten], record = appraise(*parts)
    with torch.no_grad():
        ref_logprobs = model_logprobs(reference, rollouts.tokens)
    kl = (rollouts.logprobs - ref_logprobs).sum(1)  # every row has three actions
    assert kl.abs().max() > 0.1 and record["kl"] == pytest.approx(kl.mean().item())
    for lessons in found.values():
        torch.testing.assert_close(lessons.returns[:, 0], scores - 0.7 * kl)
    assert found[False].advantages.equal(found[False].returns)  # the critic says 0
    white = found[True].advantages[mask]
    assert white.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white.var().item() == pytest.approx(1.0, rel=1e-5)


def test_kl_in_the_reward_is_a_lower_reward_and_nothing_in_the_loss(reference, strayed):
    start, rollouts = strayed
    rewards = reward([0] * 16, rollouts)
    with torch.no_grad():
        ref_logprobs = model_logprobs(reference, rollouts.tokens)
    kl = (rollouts.logprobs - ref_logprobs).sum(1)
    models = {}
    for name, given, settings in (
        ("reward", rewards, {"kl": "reward", "beta": 0.7}),
        ("by hand", rewards - 0.7 * kl, {"kl": "loss", "beta": 0.0}),
        ("loss", rewards, {"kl": "loss", "beta": 0.7}),
        ("free", rewards, {"kl": "loss", "beta": 0.0}),
    ):
        model = copy.deepcopy(start)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        config = changed(GRPO, **settings, normalize=False)
        grpo_step(model, sgd, rollouts, given, config, reference)
        models[name] = exact(model)
    # float32 models: rows come in another order, and sums round in another place
    torch.testing.assert_close(
        models["reward"], models["by hand"], rtol=1e-5, atol=1e-5
    )
    for name in ("loss", "free"):
        assert (models["reward"] - models[name]).abs().max() > 0.01
    assert (models["loss"] - models["free"]).abs().max() > 0.01


def test_the_entropy_is_that_of_the_distribution_that_was_sampled(reference):
    rollouts = one_rollout(reference, sampling=Sampling(0.5))
    logprobs, entropy = policy_logprobs(reference, rollouts, Sampling(0.5))
    p = (reference(rollouts.tokens)[:, :-1] / 0.5).softmax(-1)  # all are actions
    assert entropy == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    torch.testing.assert_close(logprobs, rollouts.logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_one_at_any_temperature_and_the_second_is_not(
    reference, temperature
):
    sampling = Sampling(temperature)
    found = {}
    for epochs in (1, 2):
        model = copy.deepcopy(reference)
        critic, rollouts = Critic(model), one_rollout(model, sampling=sampling)
        both = [*model.parameters(), *critic.parameters()]
        config = changed(PPO, epochs=epochs, minibatch=16, sampling=sampling)
        models = (model, critic, reference, torch.optim.SGD(both, lr=0.5))
        scores = reward([0] * 16, rollouts)
        found[epochs] = ppo_step(*models, rollouts, scores, 1.0, config)
    assert found[1]["old_kl"] == pytest.approx(0.0, abs=1e-9)
    assert found[2]["old_kl"] > 1e-6
    assert found[1]["kl"] == pytest.approx(0.0, abs=1e-5)  # policy and reference equal


def test_equal_rewards_change_no_weight(reference):
    def flat(which, rollouts):
        return [0.1] * len(which)

    config = changed(GRPO, beta=0.0, steps=2)
    for skip in (False, True):
        model, log = run_grpo(reference, changed(config, skip_equal=skip), flat)
        assert log.column("equal_groups") == [1.0, 1.0]
        for ours, theirs in zip(
            model.parameters(), reference.parameters(), strict=True
        ):
            assert ours.equal(theirs)


def test_leaving_equal_groups_out_only_changes_by_how_much_all_move(reference):
    rewards = torch.tensor([1.0, 0, 0, 1, 2, 2, 2, 2, 0, 0, 0, 5, 3, 3, 3, 3])
    steps = []
    for skip in (False, True):
        model = copy.deepcopy(reference)
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        settings = {"group": 4, "beta": 0.0, "max_norm": torch.inf}
        config = changed(GRPO, **settings, skip_equal=skip)
        grpo_step(model, sgd, one_rollout(model), rewards, config)
        pairs = zip(model.parameters(), reference.parameters(), strict=True)
        steps.append(torch.cat([(a - b).flatten() for a, b in pairs]))
    torch.testing.assert_close(2 * steps[0], steps[1], rtol=1e-3, atol=1e-6)
    assert steps[0].abs().max() > 1e-4


@pytest.mark.parametrize("run", [run_ppo, run_grpo])
def test_the_same_seed_gives_the_same_model_and_the_reference_stays(reference, run):
    before = copy.deepcopy(reference.state_dict())
    config = changed(PPO if run is run_ppo else GRPO, steps=3)
    runs = [run(reference, changed(config, seed=s)) for s in (0, 0, 1)]
    first, second, other = (exact(r[0]) for r in runs)
    assert first.equal(second) and not first.equal(other)
    for name, weight in reference.state_dict().items():
        assert weight.equal(before[name])


@pytest.mark.parametrize("run", [run_ppo, run_grpo])
def test_ctrl_c_ends_after_the_step_in_hand_and_keeps_the_model(reference, run):
    config, calls, kept = changed(PPO if run is run_ppo else GRPO, steps=5), [], []

    def pressed(which, rollouts):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return reward(which, rollouts)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(TrainingInterrupted, match="after step 2 of 5; the model"):
            run(_Watched(reference, kept), config, pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert exact(kept[0]).equal(exact(run(reference, changed(config, steps=2))[0]))


class _Watched(GPT):
    """A reference that tells of the copy that is made of it."""

    def __init__(self, model, kept):
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.kept = kept

    def __deepcopy__(self, memo):
        model = GPT(self.config)
        model.load_state_dict(self.state_dict())
        self.kept.append(model)
        return model


@pytest.mark.parametrize("run", [run_ppo, run_grpo])
def test_prompts_of_unequal_lengths_and_other_temperatures_train(reference, run):
    def ending(which, rollouts):
        return [float(row[-1] == 9) for row in rollouts.completions()]

    settings = {"steps": 40, "beta": 0.01, "sampling": Sampling(0.8)}
    config = changed(PPO if run is run_ppo else GRPO, **settings)
    *_, log = run(reference, config, ending, prompts=((0,), (3, 1, 2)))
    rewards = log.column("reward")
    assert rewards[-1] > 0.9 > 0.6 > rewards[0]


def test_beta_rises_while_there_is_more_kl_than_wanted(reference):
    config = changed(PPO, steps=12, beta=0.1, target_kl=0.001)
    betas = run_ppo(reference, config)[-1].column("beta")
    assert betas[-1] > betas[1] * 1.1


@pytest.mark.parametrize("bad", [[1.0], [float("nan")] * 128, [float("inf")] * 128])
@pytest.mark.parametrize("run", [run_ppo, run_grpo])
def test_rewards_that_are_no_numbers_are_refused(reference, run, bad):
    with pytest.raises(ValueError, match="rewards must be 128 finite numbers"):
        run(reference, reward=lambda which, rollouts: bad)


def test_doors_say_what_is_missing(reference):
    models = (reference, Critic(reference), reference)
    with pytest.raises(ValueError, match=r"ref must be another model"):
        ppo(*models, [[0]], reward, PPO)
    for ref in (None, reference):
        with pytest.raises(ValueError, match=r"ref must be another model, as beta > 0"):
            grpo(reference, [[0]], reward, GRPO, ref=ref)
    with pytest.raises(ValueError, match="prompts must be at least one"):
        grpo(reference, [], reward, GRPO, ref=copy.deepcopy(reference))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (GRPO, {"group": 1}, "group must be at least 2"),
        (GRPO, {"steps": 0}, "steps must be an int of at least 1"),
        (GRPO, {"kl": "both"}, "kl must be one of"),
        (GRPO, {"aggregation": "mean"}, "aggregation must be one of"),
        (GRPO, {"level": "word"}, "level must be one of"),
        (GRPO, {"kl": "loss", "skip_equal": True}, "skip_equal must be False"),
        (GRPO, {"beta": -1.0}, "beta must be at least 0"),
        (GRPO, {"minibatch": 0}, "minibatch must be an int"),
        (PPO, {"minibatch": 0}, "minibatch must be an int"),
        (PPO, {"lr": 0.0}, "lr must be positive"),
        (PPO, {"target_kl": 0.0}, "target_kl must be positive"),
        (PPO, {"beta": -1.0}, "beta must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        changed(config, **settings)


def test_a_value_knows_neither_its_action_nor_what_follows(reference):
    critic = Critic(reference)
    torch.nn.init.normal_(critic.head.weight)
    tokens = torch.tensor([[0, 3, 5, 8]])
    values = critic(tokens)
    assert values.shape == (1, 3)
    for t in range(3):  # values[:, t] stands beside token t + 1
        other = tokens.clone()
        other[0, t + 1 :] = 7
        assert critic(other)[0, : t + 1].allclose(values[0, : t + 1])
    assert not critic(torch.tensor([[0, 7, 5, 8]]))[0, 1:].allclose(values[0, 1:])


def test_values_do_not_know_the_padding_on_the_left(reference):
    critic = Critic(reference)
    torch.nn.init.normal_(critic.head.weight)
    tokens, wide = torch.tensor([[2, 3, 5]]), torch.tensor([[0, 0, 2, 3, 5]])
    values = critic(wide, torch.tensor([[0, 0, 1, 1, 1]]).bool())
    torch.testing.assert_close(values[:, 2:], critic(tokens), rtol=1e-4, atol=1e-5)


def test_the_critic_is_a_copy_and_starts_at_zero(reference):
    critic = Critic(reference)
    assert not critic(torch.tensor([[0, 1, 2]])).any()
    shared = {p.data_ptr() for p in reference.parameters()}
    assert not shared & {p.data_ptr() for p in critic.parameters()}


def test_each_module_is_clipped_by_itself():
    quiet, loud = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    both = [*quiet.parameters(), *loud.parameters()]
    before = [p.item() for p in both]
    loss = 0.5 * quiet.weight.sum() + 1000 * loud.weight.sum()
    update(loss, [quiet, loud], torch.optim.SGD(both, lr=1.0), max_norm=1.0)
    moved = [b - p.item() for b, p in zip(before, both, strict=True)]
    assert moved == pytest.approx([0.5, 1.0], rel=1e-4)


def test_a_loss_that_is_no_number_changes_no_weight():
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.clone()
    sgd = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="loss must stay finite"):
        update(layer.weight.sum() * torch.nan, [layer], sgd, 1.0)
    assert layer.weight.equal(before)


def test_minibatches_hold_every_row_once_and_rows_stay_together(reference):
    rollouts = one_rollout(reference, n=7)
    seen = torch.cat(list(minibatches(torch.arange(7), 3)))
    assert sorted(seen.tolist()) == list(range(7))
    assert list(minibatches(torch.arange(0), 3)) == []
    part = select(rollouts, torch.tensor([5, 2]))
    assert part.tokens.equal(rollouts.tokens[[5, 2]])
    assert part.logprobs.equal(rollouts.logprobs[[5, 2]])
    assert part.stop == rollouts.stop


def test_entropies_are_those_of_the_distribution_before_each_token():
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = torch.inf  # certain: 0 ln 0 = 0
    logits[0, 1] = torch.tensor([-torch.inf, -torch.inf, 0.0, -torch.inf])
    assert token_entropies(logits)[0].tolist() == pytest.approx([1.386294, 0.0])


def test_the_loop_counts_its_steps_and_rewards_are_constants():
    assert repeat(lambda: {"reward": 0.0}, 3, progress=False).column("step") == [
        0,
        1,
        2,
    ]
    weight = torch.ones(2, requires_grad=True)
    assert not rewards_of(2 * weight, 2).requires_grad
