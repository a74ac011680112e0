"""Merged task vectors beside PEFT's functions; where TIES differs, both readings."""

import pytest
import torch

from minillm.compression.merging import task_arithmetic
from minillm.compression.thinning import ties

merge_utils = pytest.importorskip("peft.utils.merge_utils")

ZERO = {"w": torch.zeros(7, 5).double()}


def vectors(n=3):
    dice = torch.Generator().manual_seed(0)
    return [torch.randn(7, 5, generator=dice, dtype=torch.float64) for _ in range(n)]


def states(tensors):
    return [{"w": t} for t in tensors]


def test_task_arithmetic_is_theirs():
    weights = [0.7, -0.2, 1.1]
    theirs = merge_utils.task_arithmetic(vectors(), torch.tensor(weights))
    ours = task_arithmetic(ZERO, states(vectors()), weights)["w"]
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])  # a whole number of 35
def test_ties_with_equal_weights_is_theirs(density):
    theirs = merge_utils.ties(vectors(), torch.ones(3).double(), density)
    ours = ties(ZERO, states(vectors()), density)["w"]
    torch.testing.assert_close(ours, theirs.double())


def test_with_unequal_weights_they_elect_without_and_divide_by_the_count():
    tensors, weights = vectors(2), [3.0, 1.0]
    theirs = merge_utils.ties(tensors, torch.tensor(weights).double(), 1.0)
    ours = ties(ZERO, states(tensors), 1.0, weights=weights)["w"]
    assert not torch.allclose(ours, theirs.double())
    tau = torch.stack(tensors)
    agrees = tau.sign() == tau.sum(0).sign()
    scaled = tau * torch.tensor(weights).double().view(-1, 1, 1)
    expected = (scaled * agrees).sum(0) / agrees.sum(0)
    torch.testing.assert_close(theirs.double(), expected)
