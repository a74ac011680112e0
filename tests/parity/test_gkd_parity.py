"""The generalised divergence beside TRL's GKD trainer."""

import pytest
import torch

from minillm.compression.distillation import gkd_loss

gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_value_and_gradient_are_theirs_per_kept_token(beta, temperature):
    dice = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, 5, 7, generator=dice, dtype=torch.float64) for _ in range(2)
    )
    student.requires_grad_()
    mask = torch.tensor([[False, True, True, False, False], [False] * 4 + [True]])
    labels = torch.where(mask, 1, -100)
    ours = gkd_loss(student, teacher, mask, beta, temperature)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student, teacher, labels, beta, temperature
    )
    torch.testing.assert_close(ours, theirs)
    slopes = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*slopes)
