r"""Muon: momentum whose matrices are made orthogonal before they are applied.

A gradient matrix is usually dominated by a few directions. Muon keeps the momentum's
singular vectors and sets all singular values to about 1, so that rare directions move
as far as frequent ones:

.. math:: M = U S V^\top \; \rightarrow \; U V^\top

No decomposition is needed: five rounds of an odd polynomial push every singular value
towards 1 with matrix products alone (Newton-Schulz).

Source: Jordan et al. 2024 (Muon); Bernstein & Newhouse 2024.
"""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import require
from minillm.training.distributed import full, shard_like

# Chosen by Jordan so that small singular values grow fastest; they land in about
# 0.7 to 1.2 rather than exactly at 1, which training does not mind.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(M: Float[Tensor, "... R C"], rounds=5) -> Float[Tensor, "... R C"]:
    r"""Replace M's singular values by values near 1.

    .. math:: X \leftarrow a X + (b X X^\top + c (X X^\top)^2) X

    acts on each singular value alone: s becomes a s + b s^3 + c s^5.

    Args:
        M: a matrix or a stack of matrices.
        rounds: applications of the polynomial.

    >>> s = torch.linalg.svdvals(orthogonalize(torch.randn(8, 24)))
    >>> bool((s > 0.5).all() and (s < 1.3).all())
    True
    """
    a, b, c = COEFFICIENTS
    wide = M.shape[-2] <= M.shape[-1]
    X = M if wide else M.mT  # the smaller Gram matrix is cheaper
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)  # singular values <= 1
    for _ in range(rounds):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return X if wide else X.mT


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for matrices.

    Args:
        params: matrices only; embeddings and vectors belong to AdamW.
        lr: step in units of spectral norm; about 0.02.
        momentum: decay of the running gradient.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: a parameter that is no matrix, a negative learning rate.

    Differs from the reference: rounds run in the parameter's precision, not bfloat16;
    matrices of one shape are orthogonalised as one stack, which saves most of the time.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.1):
        require(lr >= 0, "lr", lr, "at least 0", "try 0.02")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            ok, remedy = parameter.ndim == 2, "give vectors and embeddings to AdamW"
            require(ok, "params", parameter, "matrices", remedy)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            updates = defaultdict(list)  # by shape
            for w in group["params"]:
                if w.grad is not None:
                    update = full(self._momentum(w, group["momentum"]))
                    updates[update.shape].append((w, update))
            for (rows, columns), pairs in updates.items():
                stack = orthogonalize(torch.stack([update for _, update in pairs]))
                step = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (w, _), update in zip(pairs, stack, strict=True):
                    w.mul_(1 - group["lr"] * group["weight_decay"])
                    w.sub_(shard_like(update, w), alpha=step)

    def _momentum(self, w: Tensor, momentum: float) -> Tensor:
        """Update the running gradient and look one step ahead (Nesterov)."""
        state = self.state[w]
        if not state:
            state["momentum"] = torch.zeros_like(w)
        state["momentum"].lerp_(w.grad, 1 - momentum)
        return w.grad.lerp(state["momentum"], momentum)
