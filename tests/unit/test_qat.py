"""Training with rounded weights: what is computed, and what learns."""

import copy

import pytest
import torch
from torch import nn

from minillm.compression.qat import QATLinear, apply_qat, fake_quantize, finish_qat
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, minimise, next_token_loss

SHAPE = GPTConfig(40, n_layer=1, n_head=2, n_embd=16, context=16)
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 1, 4]])
GRID = Grid(3, 16)


def model():
    torch.manual_seed(0)
    return GPT(SHAPE)


def test_forward_is_rounded_and_backward_is_straight_through():
    torch.manual_seed(0)
    layer = QATLinear(nn.Linear(32, 5), GRID)
    x, g = torch.randn(7, 32), torch.randn(7, 5)
    rounded = quantize_rtn(layer.linear.weight, GRID).weight()
    y = layer(x)
    torch.testing.assert_close(y, nn.functional.linear(x, rounded, layer.linear.bias))
    y.backward(g)
    torch.testing.assert_close(layer.linear.weight.grad, g.T @ x)


def test_steps_smaller_than_the_grid_add_up_until_a_code_changes():
    layer = QATLinear(nn.Linear(4, 1, bias=False), Grid(2, None))
    layer.linear.weight.data = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    codes = []
    for _ in range(6):
        layer(torch.tensor([[0.0, 1.0, 0.0, 0.0]])).backward()
        layer.linear.weight.data -= 0.1 * layer.linear.weight.grad
        layer.linear.weight.grad = None
        codes.append(fake_quantize(layer.linear.weight, Grid(2, None))[0, 1].item())
    assert codes[0] == 1.0  # the first step changed nothing that can be seen
    assert codes[-1] == 0.0


def test_finished_it_is_a_plain_model_on_the_grid_that_does_the_same():
    net = apply_qat(model(), GRID)
    said = net(TOKENS)
    done = finish_qat(net)
    assert set(done.state_dict()) == set(model().state_dict())
    torch.testing.assert_close(done(TOKENS), said)
    weight = done.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(quantize_rtn(weight, GRID).weight(), weight.data)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_on_the_grid_beats_rounding_after_training(seed):
    torch.manual_seed(seed)
    rows, grid, start = torch.randint(40, (24, 12)), Grid(2, 16), GPT(SHAPE)

    def train(net):
        config = TrainConfig(120, lr=1e-2, matrix_lr=2e-2)
        minimise(net, lambda step: next_token_loss(net(rows), rows), config)
        return net

    after = finish_qat(apply_qat(train(copy.deepcopy(start)), grid))
    aware = finish_qat(train(apply_qat(copy.deepcopy(start), grid)))
    rounded, trained = (next_token_loss(m(rows), rows).item() for m in (after, aware))
    assert trained < 0.8 * rounded, (trained, rounded)


def test_norms_embedding_and_head_stay_in_floats():
    net = apply_qat(model(), GRID)
    kinds = {n.split(".")[-1] for n, m in net.named_modules() if type(m) is QATLinear}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"} | {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert isinstance(net.lm_head, nn.Linear)


def test_what_makes_no_sense_is_refused_and_nothing_is_changed():
    net = model()
    with pytest.raises(ValueError, match="divisor"):
        apply_qat(net, Grid(4, 5))
    assert isinstance(net.layers[0].self_attn.q_proj, nn.Linear)
    with pytest.raises(ValueError, match="apply_qat"):
        finish_qat(net)
    with pytest.raises(ValueError, match="in training"):
        apply_qat(apply_qat(net, GRID), GRID)
    with pytest.raises(ValueError, match="one with some"):
        apply_qat(nn.Sequential(nn.ReLU()), GRID)
