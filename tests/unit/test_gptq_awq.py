"""Integers on a grid, and two ways to choose among them: GPTQ and AWQ."""

import math

import pytest
import torch

from minillm.compression.awq import Scaled, awq, protection
from minillm.compression.bits import pack_bits, unpack_bits
from minillm.compression.calibration import Inputs, calibrate
from minillm.compression.gptq import gptq, inverse_factor
from minillm.compression.uniform import Grid, quantize_rtn
from minillm.model import GPT, GPTConfig

N, M = 32, 12


def normal(*shape, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=dice, dtype=torch.float64)


@pytest.fixture
def weight():
    return normal(M, N)


def inputs(kind, n=500):
    """Inputs that hang together, or of which some are loud."""
    x = normal(n, N, seed=1)
    if kind == "mixed":
        x = x @ normal(N, N, seed=2)
    if kind == "loud":
        x[:, ::8] *= 30
    return x


def seen(x):
    found = Inputs(torch.zeros(N, N).double(), torch.zeros(N).double())
    found.add(x)
    return found


def output_error(q, weight, x):
    return ((q.weight() - weight) @ x.T).square().sum(0).mean().item()


# The grid


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_off_by_half_a_step_at_most(bits, symmetric, weight):
    q = quantize_rtn(weight, Grid(bits, 8, symmetric))
    step = q.scales.double()[:, q.group_of]
    # a centred grid has one step less above than below, and its ends are cut; and the
    # ends are as far off as the scale is when it is rounded to eleven bits
    slack = (1.0 if symmetric else 0.5) + 2**bits / 2**12
    assert ((q.weight() - weight).abs() <= slack * step + 1e-5).all()
    assert q.codes.max() <= 2**bits - 1


def test_zero_is_always_on_the_grid(weight):
    weight = weight.abs() + 1  # far from 0, with a group of zeros
    weight[0, :8] = 0
    for symmetric in (False, True):
        q = quantize_rtn(weight, Grid(4, 8, symmetric))
        assert (q.weight()[0, :8] == 0).all()


def test_an_asymmetric_grid_wins_where_zero_is_at_its_edge(weight):
    positive = weight.abs()
    errors = [
        (quantize_rtn(positive, Grid(4, 8, s)).weight() - positive).square().mean()
        for s in (False, True)
    ]
    assert errors[0] < errors[1] / 2


def test_the_known_error_of_integers_in_blocks_of_64():
    # ERRATA of the field: asymmetric .00808, symmetric .0116 with a step of max / 7
    weight = normal(1024, 1024, seed=3)
    q = quantize_rtn(weight, Grid(4, 64))
    error = (q.weight() - weight).square().mean().item()
    assert error == pytest.approx(0.00808, rel=0.03)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 1001])
def test_packed_codes_come_back_and_leave_no_gap(bits, n):
    dice = torch.Generator().manual_seed(n)
    codes = torch.randint(2**bits, (n,), generator=dice)
    packed = pack_bits(codes, bits)
    assert len(packed) == -(-n // 8) * bits
    assert torch.equal(unpack_bits(packed, bits, n).long(), codes)
    # the same bits as one long binary number, the first code lowest
    number = sum(c << (bits * i) for i, c in enumerate(codes.tolist()))
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


@pytest.mark.parametrize("weight", [1e-9, 1e-6, 1.0, 6e4])
def test_scales_of_sixteen_bits_give_no_nan_at_any_size(weight):
    for symmetric in (False, True):
        q = quantize_rtn(weight * normal(4, N).clamp(-1, 1), Grid(4, 8, symmetric))
        off = q.weight() - weight * normal(4, N).clamp(-1, 1)
        assert (off.abs() <= 0.2 * weight + 1e-6).all()
    with pytest.raises(ValueError, match="weight"):
        quantize_rtn(1e5 * torch.ones(2, 8), Grid(4, None))


def test_bits_that_are_stored_count_scales_and_zeros():
    assert Grid(4, 64).stored_bits(4096) == 4 + 20 / 64
    assert Grid(4, 64, symmetric=True).stored_bits(4096) == 4 + 16 / 64
    assert Grid(8, None).stored_bits(512) == 8 + 24 / 512


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"bits": 1}, "bits"), ({"bits": 9}, "bits"), ({"group": 0}, "group")],
)
def test_grids_that_are_none_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Grid(**settings)


def test_groups_must_divide_the_rows(weight):
    for quantize in (quantize_rtn, lambda w, g: gptq(w, torch.eye(N), g)):
        with pytest.raises(ValueError, match="divisor of 32"):
            quantize(weight, Grid(4, 5))


# GPTQ


def test_with_inputs_that_do_not_hang_together_it_is_rounding(weight):
    H = torch.diag(torch.arange(1.0, N + 1).double())
    q, plain = gptq(weight, H, Grid(3, 8)), quantize_rtn(weight, Grid(3, 8))
    assert torch.equal(q.codes, plain.codes)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_changes_the_output_less_than_rounding(bits, act_order, weight):
    x, grid = inputs("mixed"), Grid(bits, None)
    q = gptq(weight, seen(x).hessian, grid, act_order)
    plain = quantize_rtn(weight, grid)
    assert output_error(q, weight, x) < 0.7 * output_error(plain, weight, x)
    # and it moves the weights further
    moved = [(one.weight() - weight).norm() for one in (q, plain)]
    assert moved[0] > moved[1]


def test_it_is_optimal_brain_quantization_column_by_column(weight):
    # the slow form: invert what is left of H for each column anew
    grid, H = Grid(3, None), seen(inputs("mixed")).hessian
    H = H + 0.01 * H.diagonal().mean() * torch.eye(N)
    W, (scale, zero) = weight.clone(), grid.steps(weight)
    expected = torch.empty_like(W)
    for q in range(N):
        left = torch.linalg.inv(H[q:, q:])
        expected[:, q] = grid.codes(W[:, q], scale, zero)
        error = (W[:, q] - scale * (expected[:, q] - zero)) / left[0, 0]
        W[:, q:] -= torch.outer(error, left[0])
    found = gptq(weight, seen(inputs("mixed")).hessian, grid)
    assert torch.equal(found.codes, expected.to(torch.uint8))


def test_the_factor_holds_the_inverses_of_all_that_is_left():
    H = seen(inputs("mixed")).hessian
    U = inverse_factor(H, damping=1e-12)
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(H), rtol=1e-4, atol=1e-9)
    left = torch.linalg.inv(H[5:, 5:])[0]
    torch.testing.assert_close(U[5, 5:] * U[5, 5], left, rtol=1e-4, atol=1e-9)


def test_the_order_of_columns_is_that_of_their_inputs(weight):
    # With one loud input, its column comes first and is rounded as if alone.
    x = inputs("mixed")
    x[:, 20] *= 50
    grid = Grid(2, None)
    q = gptq(weight, seen(x).hessian, grid, act_order=True)
    scale, zero = grid.steps(weight)
    assert torch.equal(q.codes[:, 20].double(), grid.codes(weight[:, 20], scale, zero))


def test_groups_in_another_order_remember_their_columns(weight):
    q = gptq(weight, seen(inputs("mixed")).hessian, Grid(4, 8), act_order=True)
    assert torch.bincount(q.group_of).tolist() == [8] * 4
    assert q.group_of.tolist() != sorted(q.group_of.tolist())
    assert (q.weight() - weight).abs().max() < 2


def test_an_input_that_never_occurs_costs_nothing_and_breaks_nothing(weight):
    x = inputs("mixed")
    x[:, 3] = 0
    q = gptq(weight, seen(x).hessian, Grid(4, None))
    assert q.weight().isfinite().all()
    zeros = gptq(weight, torch.zeros(N, N), Grid(4, None))
    assert torch.equal(zeros.codes, quantize_rtn(weight, Grid(4, None)).codes)


@pytest.mark.parametrize(
    ("weight", "hessian", "words"),
    [
        (torch.full((2, 4), math.nan), torch.eye(4), "finite matrix"),
        (torch.ones(4), torch.eye(4), "finite matrix"),
        (torch.ones(2, 4), torch.eye(3), "hessian"),
        (torch.ones(2, 4), torch.full((4, 4), math.nan), "hessian"),
        (torch.ones(2, 4), -torch.eye(4), "semidefinite"),
    ],
)
def test_what_gptq_cannot_use_is_refused(weight, hessian, words):
    with pytest.raises(ValueError, match=words):
        gptq(weight, hessian, Grid(4, None))
    with pytest.raises(ValueError, match="damping"):
        gptq(torch.ones(2, 4), torch.eye(4), damping=0)


# AWQ


def test_at_exponent_zero_it_is_rounding(weight):
    scales = protection(seen(inputs("loud")).mean, 0.0)
    assert (scales == 1).all()
    same = Inputs(torch.eye(N).double(), torch.ones(N).double(), 1)
    best = awq(weight, same, Grid(4, 8))  # inputs of one size leave nothing to scale
    plain = quantize_rtn(weight, Grid(4, 8))
    assert torch.equal(best.quantized.codes, plain.codes)


@pytest.mark.parametrize("kind", ["plain", "mixed", "loud"])
def test_it_is_never_worse_than_rounding_on_what_it_tried(kind, weight):
    x, grid = inputs(kind), Grid(3, 8)
    best, plain = awq(weight, seen(x), grid), quantize_rtn(weight, grid)
    ratio = output_error(best, weight, x) / output_error(plain, weight, x)
    assert ratio <= 1 + 1e-9
    if kind == "loud":
        assert ratio < 0.6
        assert best.alpha > 0


def test_scaling_before_and_dividing_after_changes_nothing(weight):
    scales = protection(seen(inputs("loud")).mean, 0.5)
    x = inputs("loud")
    torch.testing.assert_close((weight * scales) @ (x / scales).T, weight @ x.T)
    fine = Scaled(quantize_rtn(weight * scales, Grid(8, 8)), scales, 0.5)
    torch.testing.assert_close(fine.weight(), weight, rtol=0.05, atol=0.05)


def test_an_input_that_never_occurs_keeps_its_column(weight):
    x = inputs("loud")
    x[:, 3] = 0
    assert awq(weight, seen(x), Grid(4, 8)).weight().isfinite().all()


def test_inputs_of_another_layer_are_refused():
    with pytest.raises(ValueError, match="this layer"):
        awq(torch.ones(2, N + 1), seen(inputs("plain")), Grid(4, None))


# Calibration


def test_sums_over_batches_are_those_of_all_inputs():
    x = inputs("mixed")
    one, two = seen(x), seen(x[:100])
    two.add(x[100:].view(4, 100, N))
    assert two.n == 500
    torch.testing.assert_close(one.hessian, 2 * x.T @ x / 500)
    torch.testing.assert_close(one.mean, x.abs().mean(0))
    for ours, theirs in ((two.hessian, one.hessian), (two.mean, one.mean)):
        torch.testing.assert_close(ours, theirs)


def test_the_error_of_a_change_is_that_of_the_output(weight):
    x, change = inputs("mixed"), 0.1 * normal(M, N, seed=7)
    expected = (change @ x.T).square().sum(0).mean().item()
    assert seen(x).error(change) == pytest.approx(expected)


def test_a_model_is_read_as_it_is_and_left_as_it_was():
    torch.manual_seed(0)
    model = GPT(GPTConfig(40, n_layer=2, n_head=4, n_embd=16))
    tokens, given = torch.randint(40, (3, 7)), []
    layer = model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    found = calibrate(model, [tokens[:2], tokens[2:]])
    hook.remove()
    x = torch.cat([g.flatten(0, 1) for g in given]).double()
    one = found["layers.1.mlp.down_proj"]
    assert one.n == 21
    torch.testing.assert_close(one.hessian, 2 * x.T @ x / 21)
    assert len(found) == 14
    assert "lm_head" not in found
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="batches"):
        calibrate(GPT(GPTConfig(40, n_layer=1, n_head=2, n_embd=16)), [])
