r"""Approach 3: fit E, A, B, alpha and beta, and ask how well the data determine them.

.. math:: \min_{e, a, b, \alpha, \beta} \sum_i \mathrm{Huber}_\delta \left(
          \mathrm{LSE}(a - \alpha \ln N_i,\; b - \beta \ln D_i,\; e) - \ln L_i \right)

with E, A, B = exp(e, a, b): their logarithms keep them positive, logsumexp keeps the sum
exact, and Huber's loss keeps a failed run from pulling the law to itself. There are
several minima, so many starts are followed.

A fit always answers, and its residuals may be small while E is anything: a slow power of
N looks like a constant. So ask again without one of the points (``jackknife``) and with
runs drawn anew (``bootstrap``); an E that changes much was not identified.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.2. Besiroglu
et al. 2024 (2404.10102) show that its optimizer stopped early: the sum of losses of
1e-3 was below its tolerance. Here residuals are divided by delta before anything else.
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

STEPS = 100


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
    >>> N, D = (10.0 ** torch.tensor([7, 8, 9, 10])).tile(4), 10.0 ** torch.arange(8, 12)
    >>> D = D.repeat_interleave(4)
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

    >>> interval([ScalingLaw(E, 1, 1, 1, 1) for E in range(11)], "E", level=0.8)
    (1.0, 9.0)
    """
    values = torch.tensor([getattr(law, name) for law in laws], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([1 - level, 1 + level]).double() / 2)
    return low.item(), high.item()


def _fit(N, D, loss, weights: Tensor, delta: float) -> list[ScalingLaw]:
    """A law for each row of weights, which say how often each run counts."""
    _check(N, D, loss, delta)
    x = torch.stack([N, D]).double().log()
    centre = x.mean(1)  # at the centre of the data a and alpha are nearly independent
    u, y = x - centre[:, None], loss.double().log()
    starts = _starts(loss.double())
    theta = starts.repeat(len(weights), 1)
    c = weights.double().repeat_interleave(len(starts), 0)
    theta, cost = _marquardt(theta, u, y, c, delta)
    best = cost.view(len(weights), -1).argmin(1) + torch.arange(len(weights)) * len(
        starts
    )
    e, a, b, alpha, beta = theta[best].T
    A, B = (a + alpha * centre[0]).exp(), (b + beta * centre[1]).exp()
    rows = torch.stack([e.exp(), A, B, alpha, beta], 1).tolist()
    return [ScalingLaw(*row) for row in rows]


def _starts(loss: Float[Tensor, " n"]) -> Float[Tensor, "S 5"]:
    """Exponents and E on a grid; both terms share what is above E equally."""
    exponents = torch.tensor([0.1, 0.3, 0.6, 1.2], dtype=torch.float64)
    shares = torch.tensor([0.3, 0.7, 0.95], dtype=torch.float64)
    share, alpha, beta = torch.cartesian_prod(shares, exponents, exponents).T
    E = share * loss.min()
    half = ((loss.mean() - E) / 2).log()
    return torch.stack([E.log(), half, half, alpha, beta], 1)


def _marquardt(theta, u, y, c, delta) -> tuple[Tensor, Tensor]:
    """Gauss-Newton steps, damped until they lower the cost; each row by itself."""
    damping = torch.ones(len(theta), 1, dtype=torch.float64)
    r, J = _residuals(theta, u, y)
    cost = _huber(r / delta, c)
    for _ in range(STEPS):
        w = c * (delta / r.abs().clamp(min=delta))  # Huber's loss as weighted squares
        H = torch.einsum("snp,sn,snq->spq", J, w, J)
        g = torch.einsum("snp,sn->sp", J, w * r)
        scale = H.diagonal(dim1=1, dim2=2)
        H = H + torch.diag_embed(damping * scale + 1e-12)
        trial = theta - torch.linalg.solve(H, g)
        r_trial, J_trial = _residuals(trial, u, y)
        cost_trial = _huber(r_trial / delta, c)
        better = (cost_trial < cost)[:, None]  # and not if it is no number
        theta, r = torch.where(better, trial, theta), torch.where(better, r_trial, r)
        J = torch.where(better[..., None], J_trial, J)
        cost = torch.where(better[:, 0], cost_trial, cost)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
    return theta, cost


def _residuals(theta, u, y) -> tuple[Float[Tensor, "S n"], Float[Tensor, "S n 5"]]:
    """ln L of the law minus ln L of the runs, and its gradient in the five unknowns."""
    e, a, b, alpha, beta = theta.T[..., None]
    terms = torch.stack(
        torch.broadcast_tensors(e, a - alpha * u[0], b - beta * u[1]), -1
    )
    p = terms.softmax(-1)
    J = torch.cat([p, -p[..., 1:] * u.T], -1)
    return terms.logsumexp(-1) - y, J


def _huber(z: Float[Tensor, "S n"], c: Float[Tensor, "S n"]) -> Float[Tensor, " S"]:
    zero = torch.zeros_like(z)
    return (c * torch.nn.functional.huber_loss(z, zero, reduction="none")).sum(1)


def _check(N: Tensor, D: Tensor, loss: Tensor, delta: float) -> None:
    require_positive(delta=delta)
    for name, values in (("N", N), ("D", D), ("loss", loss)):
        flat = values.shape == N.shape and values.dim() == 1 and len(values) >= 5
        require(
            flat, name, values, "a number for each of five runs or more", "run more"
        )
        fine = bool((values > 0).all() and values.isfinite().all())
        require(
            fine, name, values.tolist(), "positive and finite", "leave such runs out"
        )
    for name, values in (("N", N), ("D", D)):
        remedy = "vary both, or its term cannot be told from E"
        require(bool((values != values[0]).any()), name, values, "several", remedy)
