"""The Triton kernels: equal to the formula, in the interpreter as on a GPU.

With TRITON_INTERPRET=0 in the environment and a GPU the same tests run compiled.
Interpreted, every tile takes some milliseconds: few heads, few tokens.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from dense_attention import dense_attention, heads, relative_errors

pytest.importorskip("triton", reason="triton has wheels for Linux only")

from minillm.kernels import flash_attention, rms_norm, tiled_forward
from minillm.kernels import triton_forward as kernels

COMPILED = os.environ.get("TRITON_INTERPRET") == "0" and torch.cuda.is_available()
DEVICE = "cuda" if COMPILED else "cpu"
if not (COMPILED or kernels.INTERPRETED):
    pytest.skip("neither a GPU nor the interpreter", allow_module_level=True)
CASES = {
    "one token": (1, 1, {}),
    "a whole block": (32, 32, {}),
    "a block and one": (33, 33, {}),
    "full tiles before the diagonal": (70, 70, {}),
    "decoding": (1, 45, {}),
    "prompt after a cache": (5, 40, {}),
    "more queries than keys": (40, 5, {}),
    "everybody sees all": (20, 70, {"causal": False}),
    "window": (70, 70, {"window": 20}),
    "window without causal": (40, 45, {"window": 9, "causal": False}),
    "ragged, queries and keys apart": (
        40, 45, {"lengths": (torch.tensor([39, 2]), torch.tensor([7, 45]))}
    ),
    "ragged, an empty one": (33, 33, {"lengths": torch.tensor([0, 20])}),
    "ragged, and everybody sees all": (  # else no key tile ends within a full one
        33,
        40,
        {"lengths": (torch.tensor([33, 1]), torch.tensor([7, 0])), "causal": False},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_zero_by_luck():
    """New memory is full of NaN, so that what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "FLOAT32", kernels.Config(16, 32, 4, 1))
    for key in kernels.CONFIGS:
        monkeypatch.setitem(kernels.CONFIGS, key, kernels.Config(32, 16, 4, 2))


def test_new_memory_is_full_of_nan():
    assert torch.empty_like(torch.ones(3)).isnan().all()
    assert torch.ones(3).new_empty(2).isnan().all()


def errors(Tq, Tk, how, H=2, G=1, D=32, dtype=torch.float32, scale=1.0):
    B = 2 if "lengths" in how else 1
    inputs = heads(B, H, G, Tq, Tk, D, dtype, DEVICE, scale)
    judges = [x.detach().double().requires_grad_() for x in inputs]
    out = flash_attention(*inputs, **how, impl="triton")
    return relative_errors(out, dense_attention(*judges, **how), inputs, judges)


@pytest.mark.parametrize(("Tq", "Tk", "how"), CASES.values(), ids=CASES)
def test_kernels_give_the_formula_and_its_gradients(Tq, Tk, how):
    assert max(errors(Tq, Tk, how)) < 2e-6  # float32 with 7 digits


@pytest.mark.parametrize(("H", "G", "D"), [(1, 1, 64), (4, 2, 32), (3, 3, 32)])
def test_heads_share_keys(H, G, D):
    assert max(errors(20, 20, {}, H, G, D)) < 2e-6


def test_half_precision_is_no_worse_than_its_digits():
    # Probabilities and their gradients are rounded to 11 bits before each product.
    assert max(errors(40, 40, {}, dtype=torch.float16)) < 1e-3


def test_huge_scores_stay_finite():
    # Scores of some thousands: float32 knows them to 1e-4, and so are their powers.
    assert max(errors(20, 20, {}, scale=30.0)) < 1e-3


def test_the_future_changes_nothing_to_the_last_bit():
    q, k, v = heads(1, 1, 1, 40, 40, 32, torch.float32, DEVICE)
    before = flash_attention(q, k, v, impl="triton")
    with torch.no_grad():
        k[:, :, 35:] += 1
        v[:, :, 35:] -= 1
    after = flash_attention(q, k, v, impl="triton")
    assert torch.equal(after[:, :, :35], before[:, :, :35])


def test_runs_agree_to_the_last_bit_and_leave_inputs_alone():
    inputs = heads(1, 2, 1, 33, 33, 32, torch.float32, DEVICE)
    before = [x.detach().clone() for x in inputs]

    def run():
        out = flash_attention(*inputs, impl="triton")
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    first = run()
    for _ in range(9 if COMPILED else 1):
        for x, y in zip(first, run(), strict=True):
            assert torch.equal(x, y)
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x, y)


def test_tensors_that_are_not_contiguous_are_right():
    inputs = heads(1, 20, 20, 2, 2, 32, torch.float32, DEVICE)  # heads and tokens
    inputs = [x.detach().transpose(1, 2).requires_grad_() for x in inputs]
    assert not inputs[0].is_contiguous()
    out, wanted = flash_attention(*inputs, impl="triton"), dense_attention(*inputs)
    assert max(relative_errors(out, wanted, inputs, inputs)) < 2e-6


@pytest.mark.skipif(COMPILED, reason="a compiled kernel cannot be listened to")
def test_kernels_visit_the_tiles_of_the_twin(monkeypatch):
    made = {}

    def count(module, name):
        made[name], true_scores = 0, module.scores

        def counted(*arguments):
            made[name] += 1
            return true_scores(*arguments)

        monkeypatch.setattr(module, "scores", counted)

    monkeypatch.setattr(tiled_forward, "BQ", kernels.FLOAT32.BQ)
    monkeypatch.setattr(tiled_forward, "BK", kernels.FLOAT32.BK)
    count(kernels, "triton"), count(tiled_forward, "tiled")
    q, k, v = (x.detach() for x in heads(1, 1, 1, 70, 70, 32, torch.float32))
    for impl in made:
        flash_attention(q, k, v, window=20, impl=impl)
    assert made["triton"] == made["tiled"] > 0


@pytest.mark.parametrize(("N", "C"), [(1, 1), (5, 24), (37, 48)])
def test_rms_norm_gives_the_formula_and_its_gradients(N, C):
    x = torch.randn(N, C).to(DEVICE).requires_grad_()
    w = torch.randn(C).to(DEVICE).requires_grad_()
    judges = [t.detach().double().requires_grad_() for t in (x, w)]
    wanted = F.rms_norm(judges[0], (C,), judges[1], 1e-5)
    out = rms_norm(x, w, impl="triton")
    assert max(relative_errors(out, wanted, [x, w], judges)) < 2e-6


def test_rms_norm_in_half_precision_adds_up_in_float32():
    x = (300 * torch.randn(33, 24)).half().to(DEVICE)  # squares beyond float16
    w = torch.ones(24).half().to(DEVICE)
    found, wanted = rms_norm(x, w, impl="triton"), rms_norm(x, w, impl="tiled")
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, wanted)


def test_rows_too_long_for_a_program_are_refused():
    x = torch.ones(1, 2**14 + 1, device=DEVICE)
    with pytest.raises(ValueError, match="C must be at most 16384"):
        rms_norm(x, x[0], impl="triton")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"D": 24}, r"D must be one of \[32, 64, 128\], got 24"),
        ({"dtype": torch.float64}, "use .to"),
        ({"dtype": torch.bfloat16}, "q must be one of"),
    ],
)
def test_what_the_kernels_cannot_do_is_named(change, words):
    if COMPILED and change == {"dtype": torch.bfloat16}:
        pytest.skip("a GPU can")
    how = {"D": 32, "dtype": torch.float32} | change
    with pytest.raises(ValueError, match=words + '.*impl="tiled"'):
        flash_attention(*heads(1, 1, 1, 4, 4, **how, device=DEVICE), impl="triton")


def test_compiled_kernels_refuse_tensors_on_the_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before Python starts"):
        flash_attention(*heads(1, 1, 1, 4, 4, 32, torch.float32), impl="triton")
