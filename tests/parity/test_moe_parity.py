"""Blocks of Mixtral, Switch and DeepSeek-V3 in transformers, with the same weights.

Both run in float64. Transformers computes the softmax (Mixtral) or the whole router
(DeepSeek-V3) in float32 all the same; ``in_float64`` takes that away, so that what is
compared is what they do. Where theirs does something else, a test says so.
"""

import pytest
import torch
from torch import nn

from minillm.model import GPTConfig, MoE, MoEConfig
from minillm.model.balancing import balance_loss, z_loss
from minillm.model.layers import SwiGLU
from minillm.model.routing import choose_experts

transformers = pytest.importorskip("transformers")
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek  # noqa: E402
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.switch_transformers import (  # noqa: E402
    modeling_switch_transformers as switch,
)

C, F, E, B, T = 16, 12, 8, 3, 10
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def in_float64(monkeypatch):
    """Their routers in the precision of the rest."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)


def spread(block: nn.Module) -> nn.Module:
    """Weights so large that a wrong gate cannot hide."""
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.4)
    return block.double().train()


def swiglu(width: int = F) -> SwiGLU:
    return SwiGLU(GPTConfig(64, n_head=2, n_embd=C, n_hidden=width))


@torch.no_grad()
def take(ours: MoE, theirs: nn.Module) -> MoE:
    """Give our layer the weights of a block whose experts lie in two tensors."""
    ours.gate.weight.copy_(theirs.gate.weight)
    for e, expert in enumerate(ours.experts):
        gate, up = theirs.experts.gate_up_proj[e].chunk(2)
        expert.gate_proj.weight.copy_(gate)
        expert.up_proj.weight.copy_(up)
        expert.down_proj.weight.copy_(theirs.experts.down_proj[e])
    return ours


def compare(ours: MoE, theirs: nn.Module, gate: str, x: torch.Tensor) -> None:
    """Values and gradients, for the input and for the router, of one random sum."""
    weight = torch.randn_like(x)
    found = []
    for block, name in ((ours, "gate.weight"), (theirs, gate)):
        given = x.clone().requires_grad_()
        y = block(given)
        leaves = [given, block.get_parameter(name)]
        found.append((y, *torch.autograd.grad((y * weight).sum(), leaves)))
    assert found[1][2].abs().max() > 0.01
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_mixtral(in_float64, k):
    config = transformers.MixtralConfig(
        hidden_size=C, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k
    )
    theirs = spread(mixtral.MixtralSparseMoeBlock(config))
    ours = take(MoE(MoEConfig(E, k), C, [swiglu() for _ in range(E)]).double(), theirs)
    x = torch.randn(B, T, C).double()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
    if k > 1:  # a single gate that is always 1 has no gradient, here as there
        compare(ours, theirs, "gate.weight", x)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mixtrals_balancing_loss_is_k_times_ours_and_pools_layers(k):
    logits = tuple(torch.randn(B * T, E) for _ in range(2))
    theirs = mixtral.load_balancing_loss_func(logits, E, k)
    scores = torch.cat(logits).softmax(-1)
    pooled = balance_loss(scores, choose_experts(scores, k).load)
    torch.testing.assert_close(theirs, k * pooled)
    each = [layer.softmax(-1) for layer in logits]
    losses = [balance_loss(s, choose_experts(s, k).load) for s in each]
    assert not torch.stack(losses).mean().isclose(pooled, rtol=1e-4)


def switch_pair(size: int) -> tuple[MoE, nn.Module]:
    config = transformers.SwitchTransformersConfig(
        d_model=C,
        d_ff=F,
        num_experts=E,
        expert_capacity=size,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        router_dtype="float32",
    )
    theirs = spread(switch.SwitchTransformersSparseMLP(config))
    theirs.router.dtype = torch.float64
    settings = MoEConfig(E, k=1, renormalise=False, capacity=size * E / T)
    ours = MoE(settings, C, list(theirs.experts.values())).double()
    ours.gate.weight = theirs.router.classifier.weight
    return ours, theirs


@pytest.mark.parametrize("size", [1, 2, 10])
def test_switch_one_sequence_at_a_time(size):
    ours, theirs = switch_pair(size)
    for row in torch.randn(B, 1, T, C).double():
        compare(ours, theirs, "router.classifier.weight", row)
        assert (ours.dropped > 0) == (size < T)


def test_switch_counts_capacity_in_each_sequence_and_we_in_the_batch():
    ours, theirs = switch_pair(2)
    x = torch.randn(1, T, C).double().repeat(2, 1, 1)  # equal rows
    expected = theirs(x)
    assert expected[0].equal(expected[1])
    y = ours(x)  # one queue for both: the first row may fill it
    assert not y[0].allclose(y[1])
    ours.eval()  # and we drop nothing where they go on dropping
    theirs.eval()
    assert (theirs(x) == 0).all(-1).any() and not (ours(x) == 0).all(-1).any()


def test_switchs_losses_and_that_it_averages_over_sequences(in_float64):
    logits = torch.randn(B, T, E).double()
    probs = logits.softmax(-1)
    theirs = switch.load_balancing_loss_func(probs, probs.argmax(-1))
    ours = [balance_loss(row, choose_experts(row, 1).load) for row in probs]
    torch.testing.assert_close(theirs, torch.stack(ours).mean(), **CLOSE)
    flat = probs.flatten(0, 1)
    assert not balance_loss(flat, choose_experts(flat, 1).load).isclose(theirs)
    ours = z_loss(logits.flatten(0, 1))
    torch.testing.assert_close(switch.router_z_loss_func(logits), ours)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("groups", "keep"), [(1, 1), (4, 2), (2, 1)])
def test_deepseek_v3(in_float64, groups, keep, renormalise):
    config = transformers.DeepseekV3Config(
        hidden_size=C,
        moe_intermediate_size=F,
        n_routed_experts=E,
        num_experts_per_tok=3,
        n_shared_experts=2,
        n_group=groups,
        topk_group=keep,
        norm_topk_prob=renormalise,
        routed_scaling_factor=2.5,
    )
    theirs = spread(deepseek.DeepseekV3MoE(config))
    theirs.gate.e_score_correction_bias.normal_(std=0.3)
    settings = MoEConfig(
        E,
        k=3,
        scores="sigmoid",
        renormalise=renormalise,
        scale=2.5,
        groups=groups,
        keep_groups=keep,
    )
    experts = [swiglu() for _ in range(E)]
    ours = take(MoE(settings, C, experts, swiglu(2 * F)).double(), theirs)
    ours.shared_experts.load_state_dict(theirs.shared_experts.state_dict())
    ours.bias.copy_(theirs.gate.e_score_correction_bias)
    compare(ours, theirs, "gate.weight", torch.randn(B, T, C).double())
