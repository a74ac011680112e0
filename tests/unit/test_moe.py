"""Experts: three ways of asking them agree, routers obey, a model trains with them."""

import copy
import math

import pytest
import torch
from torch import nn

from minillm.data.batches import Windows
from minillm.model import (
    GPT,
    GREEDY,
    GPTConfig,
    MoEConfig,
    export_huggingface,
    generate,
)
from minillm.model.experts import buffered, grouped, masked
from minillm.model.layers import SwiGLU
from minillm.model.moe import MoE, moe_layers, nudge_biases, with_experts
from minillm.model.moe_config import count_moe_parameters
from minillm.model.routing import (
    capacity,
    choose_experts,
    choose_tokens,
    drop_overflow,
    limit_to_groups,
)
from minillm.training import TrainConfig, Trainer

SHAPE = GPTConfig(61, n_layer=2, n_head=2, n_embd=16, n_hidden=48, context=32)


def experts_of(E: int, C: int = 16) -> nn.ModuleList:
    shape = GPTConfig(61, n_head=2, n_embd=C, n_hidden=12)
    experts = nn.ModuleList(SwiGLU(shape) for _ in range(E)).double()
    for weight in experts.parameters():
        nn.init.normal_(weight, std=0.4)
    return experts


def layer_of(config: MoEConfig) -> MoE:
    layer = MoE(config, 16, experts_of(config.n_experts)).double()
    nn.init.normal_(layer.gate.weight, std=0.5)
    return layer


def model_of(config: MoEConfig, **more) -> GPT:
    return with_experts(GPT(SHAPE), config, **more)


# --- the same sum, three times ------------------------------------------------------

ROUTES = {
    "top 1": lambda s: choose_experts(s, 1, renormalise=False),
    "top 2": lambda s: choose_experts(s, 2),
    "all": lambda s: choose_experts(s, 5, scale=2.5),
    "dropped": lambda s: drop_overflow(choose_experts(s, 3), 4),
    "chosen by experts": lambda s: choose_tokens(s, min(3, len(s))),
    "three without tokens": lambda s: choose_experts(
        s, 2, choice=s + torch.tensor([9.0, 0, 9, 0, 0])
    ),
}


@pytest.mark.parametrize("N", [1, 11])
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_sorted_and_buffered_experts_equal_the_definition(route, N):
    experts, x = experts_of(5), torch.randn(N, 16).double().requires_grad_()
    logits = torch.randn(N, 5).double().requires_grad_()
    leaves, weight = [x, logits, *experts.parameters()], torch.randn(N, 16).double()

    def outcome(way, *more):
        y = way(x, route(logits.softmax(-1)), experts, *more)
        return y, *torch.autograd.grad((y * weight).sum(), leaves)

    expected = outcome(masked)
    for found in (outcome(grouped), outcome(buffered, 33)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_queue_longer_than_its_buffer_is_refused():
    routing = choose_experts(torch.tensor([[0.9, 0.1]] * 3), 1)
    with pytest.raises(ValueError, match="size must be at least 3, got 2; drop_over"):
        buffered(torch.ones(3, 4), routing, [nn.Identity()] * 2, 2)


def test_equal_experts_are_one_dense_layer():
    layer, x = layer_of(MoEConfig(n_experts=4, k=3)), torch.randn(2, 5, 16).double()
    for expert in layer.experts[1:]:
        expert.load_state_dict(layer.experts[0].state_dict())
    torch.testing.assert_close(layer(x), layer.experts[0](x), rtol=1e-10, atol=1e-12)


# --- who is asked -------------------------------------------------------------------


def test_renormalised_gates_are_a_softmax_over_the_chosen_logits():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).double()
    gates = choose_experts(logits.softmax(-1), 2).gates
    torch.testing.assert_close(gates, logits[0, :2].softmax(-1))
    scaled = choose_experts(logits.softmax(-1), 2, scale=2.5).gates
    torch.testing.assert_close(scaled, 2.5 * gates)
    kept = choose_experts(logits.softmax(-1), 2, renormalise=False).gates
    expected = torch.tensor([0.643914, 0.236883]).double()
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=0)


def test_a_single_renormalised_gate_teaches_the_router_nothing():
    for renormalise in (True, False):
        logits = torch.randn(6, 4).double().requires_grad_()
        gates = choose_experts(logits.softmax(-1), 1, renormalise).gates
        (gradient,) = torch.autograd.grad(gates.sum(), logits)
        assert (gradient.abs().max() < 1e-12) == renormalise


def test_first_choices_precede_second_choices_and_earlier_tokens_later_ones():
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.4, 0.5, 0.1], [0.1, 0.6, 0.3]])
    kept = drop_overflow(choose_experts(scores, 2), 2)  # all three want expert 1
    assert sorted(zip(kept.tokens.tolist(), kept.experts.tolist(), strict=True)) == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 1),
        (2, 2),
    ]


def test_capacity_counts_assignments_and_with_all_of_them_drops_none():
    assert capacity(100, 8, 2, 1.0) == 25 == 2 * capacity(100, 8, 1, 1.0) - 1
    routing = choose_experts(torch.rand(50, 4), 2)
    assert drop_overflow(routing, 100).tokens.equal(routing.tokens)


def test_a_token_without_room_passes_on_in_the_residual_stream_while_training():
    model = model_of(MoEConfig(n_experts=2, k=1, capacity=0.5))
    block, layer = model.layers[0], model.layers[0].mlp
    with torch.no_grad():
        layer.gate.weight.zero_()  # all tokens ask the first expert; a quarter may
    x, rotations = torch.randn(1, 8, 16), model.rotations[:8]
    y = block(x, rotations)
    passed = x + block.self_attn(block.input_layernorm(x), rotations)
    assert y[0, 2:].equal(passed[0, 2:])
    assert not y[0, :2].equal(passed[0, :2])
    assert layer.dropped == 0.75
    model.eval()
    assert (block(x, rotations) != passed).any(-1).all()
    assert layer.dropped == 0


def test_experts_that_choose_are_balanced_and_see_the_future():
    layer = layer_of(MoEConfig(n_experts=4, k=2, chosen_by="experts")).eval()
    x = torch.randn(1, 12, 16).double()
    y = layer(x)
    assert layer.routing.load.tolist() == [0.25] * 4
    assert layer.routing.counts.tolist() == [6] * 4  # k N / E
    other = torch.cat([x, 3 * torch.randn(1, 12, 16).double()], dim=1)
    assert not layer(other)[:, :12].allclose(y)


def test_groups_limit_the_choice_and_one_group_does_not():
    scores = torch.rand(20, 8)
    assert limit_to_groups(scores, 1, 1).equal(scores)
    chosen = choose_experts(scores, 2, choice=limit_to_groups(scores, 4, 1))
    first, second = chosen.experts.view(2, 20)
    assert (first // 2).equal(second // 2)


def test_a_bias_chooses_but_enters_no_gate_and_gets_no_gradient():
    layer, x = layer_of(MoEConfig(4, 2, scores="sigmoid")), torch.randn(9, 16).double()
    layer.bias[3] = 5.0
    routing, _ = layer.route(x)
    assert (routing.counts[3] == 9) and not layer.bias.requires_grad
    picked = routing.scores[routing.tokens, routing.experts].view(2, 9)
    expected = (picked / picked.sum(0)).flatten()
    torch.testing.assert_close(routing.gates, expected)


def test_noise_is_for_training_only():
    layer, x = layer_of(MoEConfig(8, 2, noise=True)), torch.randn(40, 16).double()
    with torch.no_grad():
        layer.spread.weight.normal_()
    once, again = layer.route(x)[0].scores, layer.route(x)[0].scores
    assert not once.allclose(again)
    layer.eval()
    assert layer.route(x)[0].scores.equal(layer.route(x)[0].scores)


# --- in a model ---------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 1])
def test_counted_parameters_are_there_and_a_token_costs_what_a_dense_layer_did(shared):
    config = MoEConfig(n_experts=6, k=2, n_shared=shared)
    model, dense = model_of(config), sum(p.numel() for p in GPT(SHAPE).parameters())
    counted, routers = count_moe_parameters(SHAPE, config), 2 * 16 * 6
    assert counted["total"] == sum(p.numel() for p in model.parameters())
    assert counted["active"] == dense + routers


def test_only_the_layers_that_were_named_get_experts():
    model = model_of(MoEConfig(n_experts=4), layers=[1])
    assert isinstance(model.layers[0].mlp, SwiGLU)
    assert moe_layers(model) == [model.layers[1].mlp]


def test_cached_and_padded_writing_equals_the_full_pass():
    model = model_of(MoEConfig(n_experts=4, n_shared=1, capacity=0.5)).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    written = generate(model, [[1, 2, 3, 4], [5]], 8, GREEDY)
    logits = model(written.tokens, written.mask)[:, 3:-1]
    assert logits.argmax(-1).equal(written.tokens[:, 4:])


def test_its_own_losses_reach_the_router_without_the_loop_knowing():
    config = MoEConfig(n_experts=4, balance=0.3, z=0.2)
    layer, x = layer_of(config), torch.randn(2, 7, 16).double()
    leaves, weight = list(layer.parameters()), torch.randn(2, 7, 16).double()
    charged = torch.autograd.grad((layer(x) * weight).sum(), leaves)
    _, own = layer.route(x.flatten(0, 1))
    layer.eval()  # charges nothing
    plain = (layer(x) * weight).sum()
    assert not torch.autograd.grad(plain, leaves, retain_graph=True)[0].allclose(
        charged[0]
    )
    torch.testing.assert_close(torch.autograd.grad(plain + own, leaves), charged)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_trainer_trains_it_and_checkpoints_keep_its_biases(tmp_path, optimizer):
    def trainer(steps):
        torch.manual_seed(0)
        model = model_of(MoEConfig(n_experts=4, balance=0.01, capacity=1.0))
        windows = Windows(torch.arange(640) % 61, T=16, B=4)
        return Trainer(
            model,
            windows,
            TrainConfig(steps, optimizer, schedule="constant"),
            folder=tmp_path / str(steps > 9),
            on_step=lambda t: nudge_biases(t.model, 0.01),
            progress=False,
        )

    whole = trainer(20)
    losses = whole.fit().column("loss")
    assert losses[-1] < losses[0] - 0.3
    bias = moe_layers(whole.model)[0].bias
    assert bias.abs().max() > 0
    restored = trainer(20)
    torch.testing.assert_close(moe_layers(restored.model)[0].bias, bias, rtol=0, atol=1)
    copy.deepcopy(whole.model)  # what was remembered carries no graph


def test_nudging_alone_balances_a_lopsided_router():
    layer = layer_of(MoEConfig(n_experts=8, k=2, scores="sigmoid"))
    model, x = nn.ModuleList([layer]), torch.randn(512, 16).double() + 0.5

    def loads() -> float:
        layer(x)
        return torch.special.entr(layer.routing.load).sum().exp().item()

    before = loads()
    for _ in range(300):
        layer(x)
        nudge_biases(model, 0.01)
    assert before < 7 and loads() > 7.9


# --- the door -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 9}, "k must be in 1..8, the number of experts, got 9"),
        ({"k": 0}, "k must be an int of at least 1, got 0"),
        ({"n_experts": 2.0}, "n_experts must be an int"),
        ({"capacity": 0.0}, "capacity must be positive, got 0.0"),
        ({"capacity": math.nan}, "capacity must be positive, got nan"),
        ({"n_hidden": 0}, "n_hidden must be an int of at least 1, got 0"),
        ({"scores": "relu"}, "scores must be one of"),
        ({"chosen_by": "chance"}, "chosen_by must be one of"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"n_shared": -1}, "n_shared must be an int of at least 0, got -1"),
        ({"balance": -0.1}, "balance must be at least 0"),
        ({"z": math.nan}, "z must be at least 0, got nan"),
        ({"groups": 3}, "groups must be a divisor of n_experts = 8, got 3"),
        ({"groups": 8, "keep_groups": 1}, "keep_groups must be in 1..8, with room for"),
        ({"groups": 2, "keep_groups": 3}, "keep_groups must be in 1..2"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**settings)


def test_functions_refuse_what_cannot_be_done():
    scores = torch.rand(3, 4)
    for call, message in (
        (lambda: choose_experts(scores, 5), r"k must be in 1..4"),
        (lambda: choose_tokens(scores, 4), r"n must be in 1..3"),
        (lambda: capacity(3, 4, 1, 0.0), "factor must be positive"),
        (lambda: drop_overflow(choose_experts(scores, 1), 0), "size must be an int"),
        (lambda: model_of(MoEConfig(), layers=[2]), r"layers must be in 0..1"),
        (lambda: model_of(MoEConfig(64, 64)), r"k \+ n_shared must be at most 48"),
        (lambda: MoE(MoEConfig(8), 16, experts_of(7)), "experts must be as many as"),
        (lambda: layer_of(MoEConfig(4))(torch.zeros(0, 16).double()), "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_model_with_experts_is_not_exported_as_the_llama_that_it_is_not(tmp_path):
    model = with_experts(GPT(GPTConfig(64, 1, 2, n_embd=16)), MoEConfig(n_experts=4))
    with pytest.raises(ValueError, match=r"weights must be a plain Llama's.*experts"):
        export_huggingface(model, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()
