"""The loss without logits: the same value, the same gradients, and no logits."""

import pytest
import torch
import torch.nn.functional as F
from dense_attention import Largest

from minillm.kernels import chunked_cross_entropy
from minillm.model import GPT, GPTConfig
from minillm.training import next_token_loss
from minillm.training.losses import shift_targets


def problem(N=23, C=6, V=31, dtype=torch.float64):
    h = torch.randn(N, C, dtype=dtype, requires_grad=True)
    W = torch.randn(V, C, dtype=dtype, requires_grad=True)
    y = torch.randint(V, (N,))
    y[::5] = -100
    return h, W, y


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
def test_value_and_gradients_are_those_of_the_plain_loss(chunk):
    h, W, y = problem()
    plain = F.cross_entropy(h @ W.T, y)
    ours = chunked_cross_entropy(h, W, y, chunk)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)
    found = torch.autograd.grad(3 * ours, (h, W))
    for x, wanted in zip(found, torch.autograd.grad(3 * plain, (h, W)), strict=True):
        torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    h, W, y = problem(7, 3, 5)
    assert torch.autograd.gradcheck(lambda *x: chunked_cross_entropy(*x, y, 3), (h, W))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen):
    h, W, y = problem()
    (h, W)[frozen].requires_grad_(False)
    F.cross_entropy(h @ W.T, y).backward()
    wanted = (h, W)[1 - frozen].grad.clone()
    (h, W)[1 - frozen].grad = None
    chunked_cross_entropy(h, W, y, 4).backward()
    torch.testing.assert_close((h, W)[1 - frozen].grad, wanted)
    assert (h, W)[frozen].grad is None


def test_huge_logits_stay_finite():
    h, W, y = problem()
    ours = chunked_cross_entropy(h * 1e4, W, y)
    torch.testing.assert_close(ours, F.cross_entropy(h * 1e4 @ W.T, y))


def test_it_trains_a_model_with_a_tied_head_as_the_plain_loss_does():
    model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)).double()
    tokens, mask = torch.randint(64, (3, 12)), torch.rand(3, 12) < 0.7
    next_token_loss(model(tokens), tokens, mask).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    targets = shift_targets(tokens, mask)
    chunked_cross_entropy(
        model.hidden(tokens), model.lm_head.weight, targets, chunk=5
    ).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name])


def test_the_logits_never_exist():
    h, W, y = problem(N=400, C=8, V=600)
    saved, largest = [], Largest()
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.numel()) or x, lambda x: x
    )
    with keep, largest:
        chunked_cross_entropy(h, W, y, chunk=10).backward()
    assert largest.numel <= 10 * 600  # of the 400 * 600 that the plain loss makes
    assert sum(saved) == 400 * 8 + 600 * 8  # two gradients
    with largest:
        F.cross_entropy(h @ W.T, y).backward()
    assert largest.numel == 400 * 600  # the measure sees what it should


def test_half_precision_adds_up_in_float32():
    h, W, y = problem(dtype=torch.bfloat16)
    ours = chunked_cross_entropy(h, W, y, 4)
    assert ours.dtype == torch.float32
    ours.backward()
    assert h.grad.dtype == W.grad.dtype == torch.bfloat16
    h32, W32 = (x.detach().float().requires_grad_() for x in (h, W))
    F.cross_entropy(h32 @ W32.T, y).backward()
    for x, wanted in ((h.grad, h32.grad), (W.grad, W32.grad)):
        # bfloat16 keeps 8 bits of the logits and of each gradient.
        assert (x.float() - wanted).norm() < 2e-2 * wanted.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, W, y: (h, W, y[:-1]), "targets must be ints of shape"),
        (lambda h, W, y: (h, W, y.double()), "targets must be ints"),
        (lambda h, W, y: (h, W, y + 31), "targets must be some tokens in 0..30"),
        (lambda h, W, y: (h, W, 0 * y - 100), "score at least one token"),
        (lambda h, W, y: (h[:0], W, y[:0]), "score at least one token"),
        (lambda h, W, y: (h[:, 1:], W, y), "C = 6 like the weight"),
        (lambda h, W, y: (h.float(), W, y), "use .to"),
        (lambda h, W, y: (h, W, y, 0), "chunk must be an int of at least 1"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        chunked_cross_entropy(*change(*problem()))
