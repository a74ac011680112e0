r"""GPTQ: round one column, and let the columns that are left make up for it.

What has to stay is not the weight but the layer's output. If column q of a row is
rounded, its error moves the output; the columns not yet rounded can move against it.
The best such move follows from the inputs' Hessian H,

.. math:: \delta = - \frac{w_q - \hat w_q}{[H^{-1}]_{qq}} \, [H^{-1}]_{q, :}

and it is the same for all rows, because H is. After q is fixed, H loses its row and
column; the inverses of all that remain are the rows of one Cholesky factor U of
:math:`H^{-1} = U^T U`, so the whole loop needs one factorisation:

    for q in columns:
        error = (W[:, q] - round(W[:, q])) / U[q, q]
        W[:, q + 1:] -= outer(error, U[q, q + 1:])

*act-order* takes the columns with the largest inputs first, while many others are left
that can make up for them. A damped diagonal keeps H invertible where an input never
occurs.

Source: Frantar et al. 2022 (arXiv:2210.17323), sections 3.2 and 3.3, algorithm 1; the
order of columns is from its code. Differs from the paper: columns are not done in
blocks of 128, which changes no number, only how fast it is where layers are large.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.compression.uniform import Grid, Grouped, grouped, require_matrix
from minillm.errors import require, require_positive


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "M N"],
    hessian: Float[Tensor, "N N"],
    grid: Grid | None = None,
    act_order: bool = False,
    damping: float = 0.01,
) -> Grouped:
    """Quantize a layer so that its output on the calibration data changes little.

    Args:
        weight: W; unchanged.
        hessian: of ``calibrate``.
        grid: bits, groups, symmetry.
        act_order: columns with the largest inputs first. Groups are then made of the
            columns in that order, and each column remembers its group.
        damping: this part of the mean diagonal is added to it.

    Raises:
        ValueError: not a finite matrix, a Hessian of another size, not finite or not
            positive semidefinite, groups that do not divide the rows.

    >>> W, X = torch.randn(64, 32), torch.randn(300, 32) @ torch.randn(32, 32)
    >>> from minillm.compression.uniform import quantize_rtn
    >>> H, grid = 2 * X.T @ X / 300, Grid(3, None)
    >>> off = [((q.weight() - W) @ X.T).norm() for q in (gptq(W, H, grid),
    ...                                                  quantize_rtn(W, grid))]
    >>> bool(off[0] < off[1])
    True
    """
    require_matrix(weight)
    require_positive(damping=damping)
    grid, N = grid or Grid(), weight.shape[1]
    fine = hessian.shape == (N, N) and bool(hessian.isfinite().all())
    remedy = "take that of the layer from calibrate(model, batches)"
    require(fine, "hessian", hessian, f"finite, of shape {(N, N)}", remedy)
    order = torch.arange(N, device=weight.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True)
    U = inverse_factor(hessian[order][:, order], damping)
    W = weight.detach().to(U.dtype)[:, order].clone()
    codes, scales, zeros = _round_columns(W, U, grid)
    if not act_order:
        return grouped(codes, scales, zeros, grid)
    back = order.argsort()
    groups = (back // grid.size(N)).int()
    return grouped(codes[:, back], scales, zeros, grid, groups)


def inverse_factor(
    hessian: Float[Tensor, "N N"], damping: float
) -> Float[Tensor, "N N"]:
    """U, upper triangular, with H^-1 = U^T U, in float64.

    An input that is always 0 says nothing about its column; the damping keeps its
    diagonal positive, and a Hessian of zeros is taken for the identity.
    """
    H = hessian.double()
    mean = H.diagonal().mean()
    mean = torch.where(mean == 0, 1.0, mean)
    H = H + damping * mean * torch.eye(len(H), dtype=H.dtype, device=H.device)
    L, failed = torch.linalg.cholesky_ex(H)
    remedy = "take a sum of x x^T, or more damping"
    require(not failed.any(), "hessian", hessian, "positive semidefinite", remedy)
    inverse = torch.cholesky_inverse(L)
    return torch.linalg.cholesky(inverse, upper=True)


def _round_columns(
    W: Float[Tensor, "M N"], U: Float[Tensor, "N N"], grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero-points; W is used up."""
    N = W.shape[1]
    size, codes, steps = grid.size(N), torch.empty_like(W), []
    for q in range(N):
        if q % size == 0:  # as the columns are by now
            steps.append(grid.steps(W[:, q : q + size]))
        scale, zero = steps[-1]
        codes[:, q] = grid.codes(W[:, q], scale, zero)
        error = (W[:, q] - scale * (codes[:, q] - zero)) / U[q, q]
        W[:, q + 1 :] -= torch.outer(error, U[q, q + 1 :])
    scales, zeros = zip(*steps, strict=True)
    return codes, torch.stack(scales, dim=1), torch.stack(zeros, dim=1)
