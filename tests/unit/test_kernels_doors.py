"""The doors of the kernels: what they refuse, and that they open without Triton."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from dense_attention import heads

from minillm.kernels import flash_attention, rms_norm, rmsnorm
from minillm.model import RMSNorm

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch, minillm, minillm.kernels as kernels
x = torch.randn(1, 1, 5, 8, requires_grad=True)
kernels.flash_attention(x, x, x).sum().backward()
kernels.rms_norm(x, torch.ones(8)).sum().backward()
for call in (lambda: kernels.flash_attention(x, x, x, impl="triton"),
             lambda: kernels.rms_norm(x, torch.ones(8), impl="triton")):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_works_without_triton_and_asking_for_it_explains():
    told = run(WITHOUT_TRITON)
    remedy = "\"tiled\" where triton is not installed, got 'triton'; pip install"
    assert told.count(remedy) == 2


def test_importing_the_room_does_not_import_triton():
    assert (
        run("import sys, minillm.kernels; print('triton' in sys.modules)") == "False\n"
    )


def change(argument, value):
    """A call of ``flash_attention`` on right tensors but for one."""

    def call(q, k, v):
        given = {"q": q, "k": k, "v": v}
        given[argument] = value(given[argument]) if callable(value) else value
        return flash_attention(**given)

    return call


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("q", lambda x: x[0], r"q must be of shape \(B, heads, T, D\)"),
        ("q", lambda x: x[:, :, :0], r"got \(2, 4, 0, 8\); give at least one token"),
        ("k", lambda x: x[:, :0], "k must be of shape"),
        (
            "k",
            lambda x: x.float(),
            r"k must be floating-point, of torch.float64 .*\.to",
        ),
        ("v", lambda x: x.to("meta"), "on cpu like q, got 'torch.float64 on meta'"),
        ("q", lambda x: x.long(), "q must be floating-point"),
        (
            "q",
            lambda x: x[:, :3],
            "q must be of H heads, a multiple of the 2 heads of k",
        ),
        ("v", lambda x: x[:, :, 1:], "v must be of k's shape"),
        ("q", lambda x: x[:1], "B = 1"),
        ("q", lambda x: x[..., 1:], "D = 7"),
        ("window", 0, "window must be an int of at least 1"),
        (
            "lengths",
            torch.tensor([5, 6]),
            r"lengths must be a tensor of B = 2 ints in 0\.\.5",
        ),
        ("lengths", torch.tensor([5, -1]), "count the real tokens"),
        ("lengths", torch.tensor([5]), "a tensor of B = 2 ints"),
        ("lengths", torch.tensor([5.0, 4.0]), "a tensor of B = 2 ints"),
        ("lengths", [5, 4], "a tensor of B = 2 ints"),
        ("impl", "cuda", "impl must be one of"),
    ],
)
def test_bad_attention_is_named(argument, value, words):
    with pytest.raises(ValueError, match=words):
        change(argument, value)(*heads(2, 4, 2, 5, 5, 8))


@pytest.mark.parametrize(
    ("x", "weight", "eps", "words"),
    [
        (torch.ones(0, 4), torch.ones(4), 1e-5, "x must be of at least one row"),
        (torch.ones(2, 4), torch.ones(3), 1e-5, "weight must be of shape"),
        (torch.ones(2, 4), torch.ones(4).double(), 1e-5, "use .to"),
        (torch.ones(2, 4).long(), torch.ones(4).long(), 1e-5, "floating-point"),
        (torch.ones(2, 4), torch.ones(4), 0.0, "eps must be positive"),
    ],
)
def test_bad_norms_are_named(x, weight, eps, words):
    with pytest.raises(ValueError, match=words):
        rms_norm(x, weight, eps)


def test_the_norm_of_the_kernels_is_torchs_and_the_models(monkeypatch):
    monkeypatch.setattr(rmsnorm, "STRIP", 3)
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(6).double()
    norm.weight.data.copy_(w.data)
    ours, g = rms_norm(x, w), torch.randn(2, 7, 6, dtype=torch.float64)
    found = torch.autograd.grad(ours, (x, w), g)
    for other, inputs in (
        (F.rms_norm(x, (6,), w, 1e-5), (x, w)),
        (norm(x), (x, norm.weight)),
    ):
        torch.testing.assert_close(ours, other)
        torch.testing.assert_close(found, torch.autograd.grad(other, inputs, g))


def test_gradcheck_of_the_norm(monkeypatch):
    monkeypatch.setattr(rmsnorm, "STRIP", 3)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x, w))


def test_a_row_of_zeros_has_a_finite_norm_and_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm(x, torch.ones(4)).sum().backward()
    assert x.grad.isfinite().all()
