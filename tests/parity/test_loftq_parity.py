"""LoftQ beside PEFT's, where both read the paper alike and where they do not."""

import inspect

import pytest
import torch
from torch import nn

from minillm.compression.nf4 import dequantize_nf4, quantize_nf4
from minillm.finetuning.qlora import apply_qlora, loftq_start

loftq = pytest.importorskip("peft.utils.loftq_utils")
pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")
layers = pytest.importorskip("peft.tuners.lora.layer")


@pytest.fixture
def theirs(monkeypatch):
    """PEFT computes on a GPU and nowhere else; its own code, with one word changed."""
    source = inspect.getsource(loftq.loftq_init)
    assert source.count('"cuda"') == 1
    code = compile(source.replace('"cuda"', '"cpu"'), "loftq_init", "exec")
    space = dict(vars(loftq))
    exec(code, space)
    monkeypatch.setattr(layers, "loftq_init", space["loftq_init"])
    return space["loftq_init"]


def weight(rows=96, columns=128):
    dice = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=dice)


def held(target, double_quant=False):
    return dequantize_nf4(quantize_nf4(target, double_quant=double_quant))


@pytest.mark.parametrize("shape", [(96, 128), (64, 64), (192, 50)])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_without_a_scaling_quantized_base_and_product_are_theirs(rounds, shape, theirs):
    W = weight(*shape)
    target, A, B = loftq_start(W, 8, scaling=1.0, rounds=rounds)
    Q, theirs_A, theirs_B = theirs(W, num_bits=4, reduced_rank=8, num_iter=rounds)
    # A weight between two levels may go to the other one (its scale is a division here
    # and a product there), and from the second round on the SVD passes that on.
    same = (held(target) - Q).abs() < 1e-5
    assert same.float().mean() > (0.9999 if rounds == 1 else 0.995)
    residual = [(W - held(target) - B @ A).norm(), (W - Q - theirs_B @ theirs_A).norm()]
    torch.testing.assert_close(*residual, rtol=1e-3, atol=0)
    if same.all():
        torch.testing.assert_close(B @ A, theirs_B @ theirs_A, rtol=1e-4, atol=1e-4)
        # each factor has a root of the singular values, up to a sign
        torch.testing.assert_close(A.abs(), theirs_A.abs(), rtol=1e-3, atol=1e-4)


def test_in_one_round_the_product_is_theirs_to_the_last_digits(theirs):
    W = weight()
    target, A, B = loftq_start(W, 8, rounds=1)
    Q, theirs_A, theirs_B = theirs(W, num_bits=4, reduced_rank=8, num_iter=1)
    torch.testing.assert_close(held(target), Q)
    torch.testing.assert_close(B @ A, theirs_B @ theirs_A, rtol=1e-4, atol=1e-5)


def peft_layer(W, rank, alpha, rounds):
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["0"],
        init_lora_weights="loftq",
        loftq_config=peft.LoftQConfig(loftq_iter=rounds),
    )
    base = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False))
    base[0].weight.data = W.clone()
    return peft.get_peft_model(base, config).base_model.model[0]


class Named(nn.Sequential):
    """A model of one layer."""


def our_layer(W, rank, alpha, rounds):
    model = Named(nn.Linear(W.shape[1], W.shape[0], bias=False))
    model[0].weight.data = W.clone()
    apply_qlora(model, rank, alpha, double_quant=False, loftq=rounds)
    return model[0]


def test_the_layer_begins_where_theirs_does_if_the_scaling_is_one(theirs):
    W, x = weight(), weight(4, 128)
    ours, other = (make(W, 8, 8.0, 1) for make in (our_layer, peft_layer))
    assert other.scaling["default"] == ours.scaling == 1
    torch.testing.assert_close(ours(x), other(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scaling", [0.5, 2.0])
def test_with_a_scaling_the_papers_sum_is_ours_and_theirs_is_off_by_it(scaling, theirs):
    # PEFT stores B A and multiplies by s: Q + s B A, twice the correction at s = 2.
    W, eye = weight(), torch.eye(128)
    ours, other = (make(W, 8, 8 * scaling, 1) for make in (our_layer, peft_layer))
    with torch.no_grad():
        sums = [layer(eye).T for layer in (ours, other)]
    Q = held(W)
    low = sums[0] - Q
    torch.testing.assert_close(sums[1], Q + scaling * low, rtol=1e-3, atol=1e-4)
    errors = [(W - total).norm() for total in (*sums, Q)]
    assert errors[0] < errors[1]
    # at s = 2 the correction overshoots, and nothing at all would be as good
    if scaling == 2:
        torch.testing.assert_close(errors[1], errors[2], rtol=1e-3, atol=0)
