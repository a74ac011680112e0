"""Attention by tiles, in PyTorch: equal to the formula, and no tile too many."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from dense_attention import Largest, dense_attention, heads, relative_errors
from torch.nn.attention.bias import causal_lower_right

from minillm.kernels import flash_attention, tiled_backward, tiled_forward

RAGGED = torch.tensor([7, 0]), torch.tensor([3, 11])
CASES = {
    "one token": (1, 1, {}),
    "a block and one": (17, 17, {}),
    "decoding": (1, 13, {}),
    "prompt after a cache": (5, 13, {}),
    "more queries than keys": (13, 5, {}),
    "everybody sees all": (6, 11, {"causal": False}),
    "window": (19, 19, {"window": 5}),
    "window of one": (9, 9, {"window": 1}),
    "window without causal": (14, 18, {"window": 4, "causal": False}),
    "endless window": (9, 9, {"window": 99}),
    "ragged": (16, 16, {"lengths": torch.tensor([16, 5])}),
    "ragged, an empty one": (9, 9, {"lengths": torch.tensor([0, 9])}),
    "ragged, queries and keys apart": (9, 12, {"lengths": RAGGED}),
    "ragged, no causal": (9, 12, {"lengths": RAGGED, "causal": False}),
    "ragged, window": (9, 12, {"lengths": RAGGED, "window": 2}),
}
ALL = pytest.mark.parametrize(("Tq", "Tk", "how"), CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that a few tokens are several tiles, and no square ones."""
    monkeypatch.setattr(tiled_forward, "BQ", 4)
    monkeypatch.setattr(tiled_forward, "BK", 3)


@pytest.mark.parametrize("Tq", [1, 5, 13])
def test_the_judge_agrees_with_torch(Tq):
    q, k, v = heads(2, 4, 2, Tq, 13, 8)
    mask = causal_lower_right(Tq, 13)  # is_causal would be another triangle
    y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    found = relative_errors(y, dense_attention(q, k, v), [q, k, v], [q, k, v])
    assert max(found) < 1e-12


@ALL
def test_tiles_give_the_formula_and_its_gradients(Tq, Tk, how):
    inputs = heads(2, 4, 2, Tq, Tk, 8)
    out, wanted = flash_attention(*inputs, **how), dense_attention(*inputs, **how)
    assert max(relative_errors(out, wanted, inputs, inputs)) < 1e-12


@pytest.mark.parametrize(("Tq", "Tk"), [(7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize("how", [{}, {"causal": False}, {"window": 3}])
def test_gradcheck(Tq, Tk, how):
    inputs = heads(1, 2, 1, Tq, Tk, 2)
    assert torch.autograd.gradcheck(lambda *x: flash_attention(*x, **how), inputs)


def test_what_sees_nothing_is_zero_and_gives_no_gradient():
    q, k, v = heads(1, 1, 1, 5, 3, 8)  # the first two queries stand before all keys
    out = flash_attention(q, k, v)
    assert (out[0, 0, :2] == 0).all()
    out.sum().backward()
    assert (q.grad[0, 0, :2] == 0).all() and q.grad.isfinite().all()


def test_the_future_changes_nothing_to_the_last_bit():
    q, k, v = heads(1, 2, 2, 11, 11, 8)
    before = flash_attention(q, k, v)
    with torch.no_grad():
        k[:, :, 6:] += 1
        v[:, :, 6:] -= 1
    assert torch.equal(flash_attention(q, k, v)[:, :, :6], before[:, :, :6])


def test_a_vector_added_to_every_key_changes_nothing():
    q, k, v = heads(1, 2, 2, 11, 11, 8)
    moved = flash_attention(q, k + torch.randn(8, dtype=torch.float64), v)
    torch.testing.assert_close(moved, flash_attention(q, k, v))


def test_huge_scores_stay_finite():
    inputs = heads(1, 2, 2, 11, 11, 8, scale=60.0)
    out, wanted = flash_attention(*inputs), dense_attention(*inputs)
    assert max(relative_errors(out, wanted, inputs, inputs)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_lifted_and_come_back(dtype):
    inputs = heads(1, 2, 1, 9, 9, 8, dtype)
    out = flash_attention(*inputs)
    assert out.dtype == dtype
    lifted = flash_attention(*(x.float() for x in inputs))
    assert torch.equal(out, lifted.to(dtype))


def test_tensors_that_are_not_contiguous_are_right():
    q, k, v = (x.transpose(1, 2) for x in heads(1, 7, 7, 2, 2, 8))
    torch.testing.assert_close(flash_attention(q, k, v), dense_attention(q, k, v))


def seen_by_force(first, last, back, ahead, limit):
    at = range(first, last + 1)
    return [{p for p in at if p - back <= j <= p + ahead} for j in range(limit)]


def test_the_edges_leave_out_what_none_sees_and_mask_what_some_see():
    sizes = itertools.product(
        (-7, -2, 0, 3, 8), (0, 1, 4), (0, 2, 50), (0, 3, 50), (0, 11)
    )
    for (first, more, back, ahead, limit), block in itertools.product(sizes, (3, 4)):
        last = first + more
        begin, full, full_end, end = tiled_forward.edges(
            first, last, back, ahead, limit, block
        )
        runs = (begin, full), (full, full_end), (full_end, end)
        starts = [list(range(*run, block)) for run in runs]
        every = list(itertools.chain(*starts))
        assert every == sorted(set(every))
        visited = {j for start in every for j in range(start, start + block)}
        by_force = seen_by_force(first, last, back, ahead, limit)
        assert {j for j in range(limit) if by_force[j]} <= visited
        for start in starts[1]:  # no mask
            assert all(len(seers) == more + 1 for seers in by_force[start:][:block])
        for start in starts[0] + starts[2]:  # a mask, and not in vain
            tile = by_force[start:][:block]
            assert any(tile)
            assert len(tile) < block or any(len(seers) <= more for seers in tile)


def count_tiles(monkeypatch, **how) -> tuple[int, int]:
    """Tiles of a forward and a backward pass over 16 tokens in blocks of 4."""
    monkeypatch.setattr(tiled_forward, "BK", 4)
    made, true_scores = [], tiled_forward.scores

    def counted(*arguments):
        made.append(1)
        return true_scores(*arguments)

    for module in (tiled_forward, tiled_backward):
        monkeypatch.setattr(module, "scores", counted)
    out = flash_attention(*heads(1, 2, 1, 16, 16, 8), **how)
    forward = len(made)
    out.sum().backward()
    return forward, len(made) - forward


@pytest.mark.parametrize(
    ("how", "tiles"),
    [
        ({"causal": False}, 16),
        ({}, 1 + 2 + 3 + 4),
        ({"window": 4}, 1 + 2 + 2 + 2),
        ({"window": 1}, 4),
        ({"lengths": torch.tensor([7])}, 1 + 2),
        ({"lengths": torch.tensor([0])}, 0),
    ],
)
def test_masked_tiles_are_skipped(monkeypatch, how, tiles):
    assert count_tiles(monkeypatch, **how) == (tiles, 2 * tiles)


def test_memory_grows_with_the_length_and_not_with_its_square():
    def measure(T):
        saved, largest = [], Largest()
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x.numel()) or x, lambda x: x
        )
        inputs = heads(1, 2, 1, T, T, 8)
        with keep, largest:
            out = flash_attention(*inputs)
            out.sum().backward()
        return sum(saved), largest.numel

    short, long = measure(32), measure(64)
    assert long == (2 * short[0], 2 * short[1])
    assert long[1] < 64 * 64
