r"""Approach 3: fit E, A, B, alpha and beta, and ask how well the data determine them.

.. math:: \min_{e, a, b, \alpha, \beta} \sum_i \mathrm{Huber}_\delta \left(
          \mathrm{LSE}(a - \alpha \ln N_i,\; b - \beta \ln D_i,\; e) - \ln L_i \right)

with E, A, B = exp(e, a, b): their logarithms keep them positive, logsumexp (LSE) keeps
the sum exact, and Huber's loss keeps a failed run from pulling the law to itself. There
are several minima, so many starts are followed.

A fit always answers, and its residuals may be small while E is anything: a slow power
of N looks like a constant. So ask again without one of the points (``jackknife``) and
with runs drawn anew (``bootstrap``); an E that changes much was not identified.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.2. Besiroglu
et al. 2024 (2404.10102) found that its optimizer stopped before it had converged, for
the losses were too small for its tolerance. Here residuals are divided by delta first.
Differs from the paper: Levenberg and Marquardt's method (Marquardt 1963) with weights
that make squares of Huber's loss, in place of L-BFGS. With five unknowns the curvature
costs nothing, and all starts of all resamples are followed at once.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_count, require_positive
from minillm.training.scaling import ScalingLaw

FOLLOWED, SHORT, LONG = 3, 20, 400  # all starts go 20 steps, the best three go on


def fit_law(
    N: Float[Tensor, " n"],
    D: Float[Tensor, " n"],
    loss: Float[Tensor, " n"],
    delta: float = 1e-3,
) -> ScalingLaw:
    """The law that fits the runs best.

    Args:
        N: parameters of each run.
        D: its tokens.
        loss: its last loss, in nats.
        delta: residuals of ln L above this count linearly.

    Raises:
        ValueError: fewer than five points, numbers that are not positive and finite, a
            single N or a single D.

    >>> from minillm.training.scaling import BESIROGLU, chinchilla_loss
    >>> grid = torch.cartesian_prod(torch.arange(7.0, 11), torch.arange(8.0, 12))
    >>> N, D = 10**grid.double().T
    >>> law = fit_law(N, D, chinchilla_loss(N, D, BESIROGLU))
    >>> abs(law.E - BESIROGLU.E) < 1e-3
    True
    """
    return _fit(N, D, loss, torch.ones(1, len(N)), delta)[0]


def jackknife(
    N: Float[Tensor, " n"],
    D: Float[Tensor, " n"],
    loss: Float[Tensor, " n"],
    delta: float = 1e-3,
) -> list[ScalingLaw]:
    """Fit again without each of the points; runs of equal N and D are one point.

    Raises:
        ValueError: as ``fit_law``.
    """
    _, point = torch.stack([N, D], 1).unique(dim=0, return_inverse=True)
    kept = point != torch.arange(int(point.max()) + 1)[:, None]
    return _fit(N, D, loss, kept, delta)


def bootstrap(
    N: Float[Tensor, " n"],
    D: Float[Tensor, " n"],
    loss: Float[Tensor, " n"],
    resamples: int = 100,
    seed: int = 0,
    delta: float = 1e-3,
) -> list[ScalingLaw]:
    """Fit again to runs that are drawn with replacement, as often as there are runs.

    Raises:
        ValueError: as ``fit_law``; a count of resamples that is none.
    """
    require_count(resamples=resamples)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(N), (resamples, len(N)), generator=generator)
    times = torch.nn.functional.one_hot(drawn, len(N)).sum(1)
    return _fit(N, D, loss, times, delta)


def interval(
    laws: Sequence[ScalingLaw], name: str, level: float = 0.9
) -> tuple[float, float]:
    """Between which two values does the middle ``level`` of the fits have a constant?

    >>> laws = [ScalingLaw(E, 1, 1, 1, 1) for E in range(9)]
    >>> interval(laws, "E", level=0.5)
    (2.0, 6.0)
    """
    values = torch.tensor([getattr(law, name) for law in laws], dtype=torch.float64)
    tails = torch.tensor([1 - level, 1 + level], dtype=values.dtype) / 2
    low, high = values.quantile(tails).tolist()
    return low, high


def _fit(N, D, loss, weights: Tensor, delta: float) -> list[ScalingLaw]:
    """A law for each row of weights, which say how often each run counts."""
    _check(N, D, loss, delta)
    x = torch.stack([N, D]).double().log()
    centre = x.mean(1)  # at the centre of the data a and alpha are nearly independent
    u, y = x - centre[:, None], loss.double().log()
    theta = _starts(loss.double()).repeat(len(weights), 1, 1)
    c = weights.double()[:, None]
    for kept, steps in ((FOLLOWED, SHORT), (1, LONG)):
        theta, cost = _marquardt(theta, u, y, c, delta, steps)
        best = cost.topk(kept, dim=1, largest=False).indices
        theta = theta.take_along_dim(best[..., None], 1)
    e, a, b, alpha, beta = theta[:, 0].T
    A, B = (a + alpha * centre[0]).exp(), (b + beta * centre[1]).exp()
    rows = torch.stack([e.exp(), A, B, alpha, beta], 1).tolist()
    return [ScalingLaw(*row) for row in rows]


def _starts(loss: Float[Tensor, " n"]) -> Float[Tensor, "1 S 5"]:
    """Exponents and E on a grid; both terms share what is above E equally."""
    exponents = torch.tensor([0.1, 0.3, 0.6, 1.2], dtype=torch.float64)
    shares = torch.tensor([0.3, 0.7, 0.95], dtype=torch.float64)
    share, alpha, beta = torch.cartesian_prod(shares, exponents, exponents).T
    E = share * loss.min()
    half = ((loss.mean() - E) / 2).log()
    return torch.stack([E.log(), half, half, alpha, beta], 1)[None]


def _marquardt(theta, u, y, c, delta, steps) -> tuple[Tensor, Tensor]:
    """Gauss-Newton steps, damped until they lower the cost; each row by itself."""
    damping = torch.ones_like(theta[..., :1])
    r, J = _residuals(theta, u, y)
    cost = _huber(r / delta, c)
    for _ in range(steps):
        w = c * (delta / r.abs().clamp(min=delta))  # Huber's loss as weighted squares
        H = torch.einsum("rsnp,rsn,rsnq->rspq", J, w, J)
        g = torch.einsum("rsnp,rsn->rsp", J, w * r)
        scale = H.diagonal(dim1=-2, dim2=-1)
        H = H + torch.diag_embed(damping * scale + 1e-12)
        trial = theta - torch.linalg.solve_ex(H, g)[0]
        r_trial, J_trial = _residuals(trial, u, y)
        cost_trial = _huber(r_trial / delta, c)
        better = (cost_trial < cost)[..., None]  # and not if it is no number
        theta, r = torch.where(better, trial, theta), torch.where(better, r_trial, r)
        J = torch.where(better[..., None], J_trial, J)
        cost = torch.where(better[..., 0], cost_trial, cost)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
    return theta, cost


def _residuals(theta, u, y) -> tuple[Float[Tensor, "R S n"], Float[Tensor, "R S n 5"]]:
    """ln L of the law minus ln L of the runs, and its gradient in the five unknowns."""
    e, a, b, alpha, beta = theta[..., None].unbind(-2)
    powers = a - alpha * u[0], b - beta * u[1]
    terms = torch.stack(torch.broadcast_tensors(e, *powers), -1)
    p = terms.softmax(-1)
    J = torch.cat([p, -p[..., 1:] * u.T], -1)
    return terms.logsumexp(-1) - y, J


def _huber(z: Float[Tensor, "R S n"], c: Tensor) -> Float[Tensor, "R S"]:
    zero = torch.zeros_like(z)
    return (c * torch.nn.functional.huber_loss(z, zero, reduction="none")).sum(-1)


def _check(N: Tensor, D: Tensor, loss: Tensor, delta: float) -> None:
    require_positive(delta=delta)
    for name, values in (("N", N), ("D", D), ("loss", loss)):
        flat = values.shape == N.shape and values.dim() == 1 and len(values) >= 5
        require(flat, name, values, "one number a run, five at least", "run more")
        fine = bool((values > 0).all() and values.isfinite().all())
        require(fine, name, values.tolist(), "positive and finite", "leave it out")
    for name, values in (("N", N), ("D", D)):
        remedy = "vary both, or its term cannot be told from E"
        require(bool((values != values[0]).any()), name, values, "several", remedy)
