"""AdamW by hand, Muon and clipping against torch's, and who gets which parameter."""

import math

import pytest
import torch
from torch import nn

from minillm.model import GPT, GPTConfig
from minillm.training import AdamW, Muon, orthogonalize
from minillm.training.optimizers import (
    adamw_update,
    build_optimizers,
    clip_gradients,
    parameter_groups,
)

CONFIG = GPTConfig(vocab_size=13, n_layer=2, n_head=2, n_embd=16, context=16)


def zeros() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.float64)


# --- AdamW --------------------------------------------------------------------------


def test_twenty_steps_by_hand_equal_torchs_in_every_group():
    shapes = [(4, 3), (5,), (2, 2, 2), (1,)]
    start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    ours, theirs = (
        [nn.Parameter(w.clone()) for w in start] for _ in ("ours", "theirs")
    )

    def groups(w):
        return [
            {"params": w[:2]},
            {"params": w[2:3], "weight_decay": 0.0, "lr": 0.3},
            {"params": w[3:], "betas": (0.5, 0.7), "eps": 1e-3},
        ]

    common = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = (
        AdamW(groups(ours), **common),
        torch.optim.AdamW(groups(theirs), **common),
    )
    for step in range(20):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.97  # a schedule, too
        for mine, other in zip(ours, theirs, strict=True):
            gradient = torch.randn_like(mine) * 10.0 ** (step % 5 - 2)
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=0)
    for mine, other in zip(ours, theirs, strict=True):
        for entry in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                optimizers[0].state[mine][entry],
                optimizers[1].state[other][entry],
                rtol=1e-10,
                atol=0,
            )


def test_decay_does_not_pass_through_the_ratio():
    w = torch.ones(1, dtype=torch.float64)
    adamw_update(w, zeros(), zeros(), zeros(), t=1, lr=0.1, weight_decay=0.1)
    assert w.item() == pytest.approx(0.990)
    # M10a: an L2 term in the gradient is normalised away and moves w by lr, to 0.900
    coupled = torch.ones(1, dtype=torch.float64)
    g = 0.1 * coupled
    adamw_update(coupled, g, zeros(), zeros(), t=1, lr=0.1, weight_decay=0.0)
    assert coupled.item() == pytest.approx(0.900, abs=1e-6)


@pytest.mark.parametrize("g", [1e-3, 1.0, -1e3])
def test_the_first_step_has_the_size_of_lr_whatever_the_gradient(g):
    w, g = zeros(), torch.tensor([g], dtype=torch.float64)
    adamw_update(w, g, zeros(), zeros(), t=1, lr=0.1, beta2=0.9, weight_decay=0.0)
    assert w.item() == pytest.approx(-0.1 * g.sign().item(), rel=1e-4)
    # M10b: without bias correction (t large) the same step is 0.1 / sqrt(0.1) = 0.3162
    raw = zeros()
    adamw_update(
        raw, g, zeros(), zeros(), t=10**6, lr=0.1, beta2=0.9, beta1=0, weight_decay=0
    )
    assert abs(raw.item()) == pytest.approx(0.3162, abs=1e-4)


def test_eps_stands_outside_of_the_root():
    w, g = zeros(), torch.full((1,), 1e-4, dtype=torch.float64)
    adamw_update(w, g, zeros(), zeros(), t=1, lr=1.0, eps=1e-4, weight_decay=0.0)
    assert w.item() == pytest.approx(-0.5)  # M10e, inside: 1e-4 / 1e-2 = 0.01


def test_a_parameter_without_gradient_is_neither_decayed_nor_given_moments():
    for make in (AdamW, Muon):
        idle, busy = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
        busy.grad = torch.ones(2, 2)
        optimizer = make([idle, busy])
        optimizer.step()
        assert idle.eq(1).all() and idle not in optimizer.state
        assert not busy.eq(1).any()


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (-1, 0)}]
)
def test_adamw_refuses_rates_out_of_range(bad):
    with pytest.raises(ValueError, match="must be"):
        AdamW([nn.Parameter(torch.ones(1))], **bad)


# --- Muon ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8), (64, 64), (1, 5)])
def test_singular_values_land_near_one_and_singular_vectors_stay(shape):
    # Five rounds lift s / |M|_F >= 0.02 into [0.7, 1.2] (Jordan); we leave a margin.
    U, _, Vh = torch.linalg.svd(
        torch.randn(shape, dtype=torch.float64), full_matrices=False
    )
    s = torch.linspace(1, 0.2, min(shape), dtype=torch.float64)
    X = orthogonalize(U * s @ Vh)
    assert X.shape == shape
    inner = U.T @ X @ Vh.T  # diagonal if the singular vectors are kept
    values = inner.diagonal()
    assert (values > 0.6).all() and (values < 1.3).all()
    torch.testing.assert_close(inner, values.diag(), rtol=0, atol=1e-9)


def test_each_singular_value_follows_the_polynomial():
    s = torch.tensor([0.9, 0.4, 0.15, 0.06], dtype=torch.float64)
    s = s / s.norm()
    U, V = (torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q for _ in "UV")
    expected = s / (1 + 1e-7)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(
        U.T @ orthogonalize(U * s @ V.T) @ V, expected.diag(), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_a_stack_is_orthogonalised_like_its_matrices_one_by_one(shape):
    stack = torch.randn(3, *shape, dtype=torch.float64)
    stack *= torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None, None]
    together = orthogonalize(stack)
    alone = torch.stack([orthogonalize(matrix) for matrix in stack])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_a_tall_matrix_is_the_transpose_of_a_wide_one():
    M = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(
        orthogonalize(M), orthogonalize(M.T).T, rtol=1e-12, atol=1e-12
    )


def test_the_scale_of_a_matrix_does_not_matter_and_zero_stays_zero():
    M = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(
        orthogonalize(1e6 * M), orthogonalize(M), rtol=1e-5, atol=1e-6
    )
    assert orthogonalize(torch.zeros(3, 4)).eq(0).all()


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (16, 16)])
def test_muon_equals_torchs_muon_but_for_its_bfloat16(shape):
    # torch runs the rounds in bfloat16: 8 bits, so each product is wrong by up to 2^-8
    # = 0.4 %, and five rounds with a slope of 3.4 at small singular values amplify it
    # to some percent of the update. Compared is therefore the whole displacement after
    # ten steps, relative to its size; a missing Nesterov term, a wrong factor for tall
    # matrices or coupled decay each change it by a quarter or more.
    start, gradients = torch.randn(shape), torch.randn(10, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.05 * start.norm()
    assert (ours - theirs).norm() / moved < 0.03


def test_muon_steps_by_its_formula():
    start = torch.randn(6, 4, dtype=torch.float64)
    w, momentum = nn.Parameter(start.clone()), torch.zeros_like(start)
    optimizer, expected = Muon([w], lr=0.1, momentum=0.8, weight_decay=0.2), start
    for _ in range(3):
        w.grad = torch.randn_like(start)
        momentum = 0.8 * momentum + 0.2 * w.grad
        nesterov = 0.2 * w.grad + 0.8 * momentum
        step = 0.1 * math.sqrt(6 / 4)
        expected = expected * (1 - 0.1 * 0.2) - step * orthogonalize(nesterov)
        optimizer.step()
        torch.testing.assert_close(w.data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (), (2, 3, 4)])
def test_muon_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match="params must be matrices"):
        Muon([nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(shape))])


def test_muon_refuses_a_negative_rate():
    with pytest.raises(ValueError, match="lr must be at least 0"):
        Muon([nn.Parameter(torch.zeros(3, 3))], lr=-0.1)


# --- clipping -----------------------------------------------------------------------


def with_gradients(*gradients) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        gradient = torch.as_tensor(gradient, dtype=torch.float64)
        parameters.append(nn.Parameter(torch.zeros_like(gradient)))
        parameters[-1].grad = gradient.clone()
    return parameters


def test_clipping_turns_nothing():
    (w,) = with_gradients([3.0, 4.0])
    assert clip_gradients([w], 1.0) == pytest.approx(5.0)
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64)  # M11a: (1, 1)
    torch.testing.assert_close(w.grad, expected, rtol=1e-6, atol=0)


def test_one_norm_is_taken_over_all_parameters():
    a, b = with_gradients([3.0], [4.0])
    assert clip_gradients([a, b], 1.0) == pytest.approx(5.0)
    assert a.grad.item() == pytest.approx(0.6, rel=1e-6)  # M11b: 1.0
    assert b.grad.item() == pytest.approx(0.8, rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 0.51, math.inf])
def test_small_gradients_are_not_scaled_up(max_norm):
    (w,) = with_gradients([0.3, 0.4])
    before = w.grad.clone()
    assert clip_gradients([w], max_norm) == pytest.approx(0.5)
    torch.testing.assert_close(w.grad, before, rtol=3e-6, atol=0)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clipping_equals_torchs(max_norm):
    gradients = [torch.randn(shape) for shape in ((3, 4), (5,), (), (2, 2, 2))]
    ours, theirs = with_gradients(*gradients), with_gradients(*gradients)
    norm = clip_gradients(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm == pytest.approx(expected.item(), rel=1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=0)


def test_parameters_without_gradients_are_passed_over():
    frozen, (w,) = nn.Parameter(torch.ones(2)), with_gradients([3.0, 4.0])
    assert clip_gradients([frozen, w], 1.0) == pytest.approx(5.0)
    assert clip_gradients([frozen], 1.0) == 0.0
    assert clip_gradients(iter([w]), 10.0) == pytest.approx(1.0, rel=1e-5)


def test_a_norm_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_gradients([], 0.0)


# --- who gets what ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adamw-by-hand", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_all_optimizers_together_hold_each_parameter_once(name, tied):
    model = GPT(GPTConfig(13, n_layer=2, n_head=2, n_embd=16, tied=tied))
    optimizers = build_optimizers(model, name)
    held = [
        id(p) for o in optimizers for group in o.param_groups for p in group["params"]
    ]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_parameters_are_sorted_by_what_they_are(tied, tables):
    model = GPT(GPTConfig(13, n_layer=2, n_head=2, n_embd=16, tied=tied))
    groups = parameter_groups(model)
    sizes = {name: len(group) for name, group in groups.items()}
    assert sizes == {"matrices": 14, "embeddings": tables, "vectors": 5}
    assert groups["embeddings"][0] is model.embed_tokens.weight
    assert {p.ndim for p in groups["vectors"]} == {1}


def test_a_square_vocabulary_does_not_make_the_embedding_a_matrix():
    model = GPT(GPTConfig(16, n_layer=1, n_head=2, n_embd=16, tied=False))
    tables = parameter_groups(model)["embeddings"]
    assert {id(p) for p in tables} == {
        id(model.embed_tokens.weight),
        id(model.lm_head.weight),
    }


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = GPT(CONFIG)
    model.embed_tokens.requires_grad_(False)
    model.layers[0].requires_grad_(False)
    groups = parameter_groups(model)
    sizes = {name: len(group) for name, group in groups.items()}
    assert sizes == {"matrices": 7, "embeddings": 0, "vectors": 3}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model must be trainable"):
        build_optimizers(model)


@pytest.mark.parametrize("name", ["adamw", "adamw-by-hand", "muon"])
def test_gains_are_never_decayed_and_matrices_always_are(name):
    model = GPT(CONFIG)
    for optimizer in build_optimizers(model, name, weight_decay=0.3):
        for group in optimizer.param_groups:
            assert group["peak_lr"] == group["lr"]
            decayed = {p.ndim > 1 for p in group["params"]}
            assert decayed == {group["weight_decay"] == 0.3}
            assert group["weight_decay"] in (0.0, 0.3)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"optimizer must be one of .*'muon'.*'sgd'"):
        build_optimizers(GPT(CONFIG), "sgd")
