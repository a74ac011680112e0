"""Terms that remember: what they are, and that they hold."""

import pytest
import torch

from minillm.data.batches import Windows
from minillm.finetuning.adapted import adapted_layers
from minillm.finetuning.forgetting import (
    Replay,
    anchor,
    ewc,
    fisher_information,
    kl_to_base,
    l2_sp,
)
from minillm.finetuning.lora import apply_lora
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer

SHAPE = GPTConfig(12, n_layer=1, n_head=2, n_embd=8, context=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(SHAPE).double()


def moved(model, size=0.1):
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
            parameter += size * noise
    return model


def test_where_training_began_nothing_is_to_pay_and_nothing_pulls(model):
    start = anchor(model)
    fisher = {n: torch.ones_like(t) for n, t in start.items()}
    for penalty in (l2_sp(model, start), ewc(model, start, fisher)):
        grads = torch.autograd.grad(penalty, list(model.parameters()))
        assert penalty == 0
        assert all((g == 0).all() for g in grads)


def test_l2_sp_pulls_to_the_start_and_not_to_zero(model):
    start = anchor(model)
    penalty = l2_sp(moved(model), start)
    distance = sum((p - start[n]).square().sum() for n, p in model.named_parameters())
    torch.testing.assert_close(penalty, distance / 2)
    penalty.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, (parameter - start[name]).detach())


def test_ewc_pulls_each_weight_by_its_fisher(model):
    start = anchor(model)
    fisher = {n: torch.rand_like(t) for n, t in start.items()}
    ewc(moved(model), start, fisher).backward()
    for name, parameter in model.named_parameters():
        pull = fisher[name] * (parameter - start[name]).detach()
        torch.testing.assert_close(parameter.grad, pull)


def test_the_fisher_is_the_curvature_of_the_divergence_from_the_old_model():
    # One position: the sum over all labels, each by its probability, is exact.
    torch.manual_seed(0)
    model = GPT(SHAPE).double()
    row = torch.tensor([3, 7])
    named = dict(model.named_parameters())
    p = model(row[None])[0, 0].softmax(-1)
    exact = {n: torch.zeros_like(t) for n, t in named.items()}
    for v in range(SHAPE.vocab_size):
        logprob = model(row[None])[0, 0].log_softmax(-1)[v]
        grads = torch.autograd.grad(logprob, named.values())
        for name, g in zip(named, grads, strict=True):
            exact[name] += p[v].detach() * g.square()
    dice = torch.Generator().manual_seed(0)
    drawn = fisher_information(model, [row] * 3000, generator=dice)
    name = "layers.0.mlp.down_proj.weight"
    off = (drawn[name] - exact[name]).norm() / exact[name].norm()
    assert off < 0.1
    # and the second difference of KL(old || new) along one weight is that number
    old = model(row[None]).detach()
    weight, place = model.get_parameter(name), (2, 5)
    kls = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            weight[place] += step
            kls.append(kl_to_base(model(row[None])[:, :1], old[:, :1]).item())
            weight[place] -= step
    assert sum(kls) / 1e-6 == pytest.approx(exact[name][place].item(), rel=1e-2)


def test_the_two_fishers_differ(model):
    rows = [torch.randint(12, (9,)) for _ in range(20)]
    dice = torch.Generator().manual_seed(0)
    true = fisher_information(model, rows, generator=dice)
    empirical = fisher_information(model, rows, empirical=True)
    assert any(not torch.allclose(true[n], empirical[n], rtol=0.1) for n in true)
    again = fisher_information(model, rows, empirical=True)
    assert all(torch.equal(again[n], empirical[n]) for n in again)


def test_rows_are_squared_one_by_one(model):
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7])]
    both = fisher_information(model, rows, empirical=True)
    alone = [fisher_information(model, [row], empirical=True) for row in rows]
    for name in both:
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2)


def test_only_what_is_trained_is_held(model):
    apply_lora(model, 2, targets="q_proj")
    start = anchor(model)
    assert {n.split(".")[-1] for n in start} == {"lora_A", "lora_B"}
    assert set(fisher_information(model, [torch.arange(5)])) == set(start)
    assert len(adapted_layers(model)) == 1


def test_others_anchors_and_no_rows_are_refused(model):
    with pytest.raises(ValueError, match="this model"):
        l2_sp(model, {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="this model"):
        ewc(model, anchor(model), {})
    with pytest.raises(ValueError, match="at least 1"):
        fisher_information(model, [])


def test_the_fisher_leaves_the_model_without_gradients(model):
    fisher_information(model, [torch.arange(5)])
    assert all(p.grad is None for p in model.parameters())


def windows(token, T=5, B=10):
    return Windows(torch.full((500,), token), T, B)


def test_a_fifth_of_the_rows_is_replayed_and_all_others_are_new():
    batch = Replay(windows(1), windows(2), every=5)[3]
    assert batch.tokens[:, 0].tolist() == [2, 1, 1, 1, 1] * 2
    assert batch.mask.shape == batch.tokens.shape


def test_replay_is_a_function_of_the_step_and_trains():
    both = Replay(Windows(torch.arange(500) % 12, 5, 4), windows(2, B=2))
    assert both[7].tokens.equal(both[7].tokens)
    trainer = Trainer(GPT(SHAPE), both, TrainConfig(3), progress=False)
    trainer.fit()
    assert trainer.step == 3


@pytest.mark.parametrize(
    ("old", "every", "words"),
    [
        (windows(2), 1, "at least 2"),
        (windows(2, T=6), 5, "same T"),
        (windows(2, B=1), 5, "enlarge its B"),
    ],
)
def test_replays_that_do_not_fit_are_refused(old, every, words):
    with pytest.raises(ValueError, match=words):
        Replay(windows(1), old, every)[0]
