r"""Approaches 1 and 2: where does the loss have its minimum, at a given compute?

Neither assumes a law for the loss, only that the best size is a power of compute,

.. math:: N_{opt}(C) = k \, C^{a}

Approach 1 draws the training curves of models of many sizes over compute: their lower
envelope says which size was best at each C. It needs a schedule that ended at each
point: the middle of one long cosine is worse than a short run that ended there.

Approach 2 trains several sizes with the same C each and lays a parabola through their
losses over ln N; its vertex is N_opt. The true curve is no parabola, so the vertex is
off by a factor; that factor is the same at each C, and the exponent unharmed, if sizes
are chosen around the optimum in the same way every time.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), sections 3.1 and 3.2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require


def power_law(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> tuple[float, float]:
    """The k and a of y = k x^a, by least squares between the logarithms.

    Raises:
        ValueError: fewer than two points, or numbers that are not above 0.

    >>> k, a = power_law(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 6.0]))
    >>> round(k, 4), round(a, 4)
    (3.0, 0.5)
    """
    enough, remedy = x.shape == y.shape and len(x) >= 2, "measure at two places or more"
    require(enough, "x", x, "as many points as y, two at least", remedy)
    positive = bool((x > 0).all() and (y > 0).all())
    require(positive, "x and y", (x, y), "above 0", "a power law has no zero")
    u, v = x.double().log(), y.double().log()
    a = ((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum()
    return (v.mean() - a * u.mean()).exp().item(), a.item()


def envelope(
    flops: Float[Tensor, " F"],
    N: Float[Tensor, " M"],
    D: Float[Tensor, " K"],
    loss: Float[Tensor, "M K"],
) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"]]:
    """Approach 1: which of M models had the least loss, after how much compute?

    Between two measured places a curve is taken for straight over ln D.

    Args:
        flops: the budgets C to ask about.
        N: sizes, growing.
        D: tokens at which all of them were measured, growing.
        loss: what was measured.

    Returns:
        the budgets at which a best size was bracketed, and these sizes. Where the
        smallest or the largest of those that got so far was the best, another that was
        not trained may be better, and the budget is left out.

    >>> N, D = 2.0 ** torch.arange(9), 2.0 ** torch.arange(17)
    >>> loss = 1 / N[:, None] + 1 / D
    >>> envelope(6 * torch.tensor([16.0, 64.0]), N, D, loss)[1]
    tensor([4., 8.])
    """
    growing = bool((N.diff() > 0).all() and (D.diff() > 0).all())
    require(growing, "N and D", (N, D), "growing", "sort them, and each only once")
    fits = loss.shape == (len(N), len(D)) and len(D) >= 2
    require(fits, "loss", loss, f"({len(N)}, {len(D)})", "one row for each size")
    wanted = flops / 6 / N[:, None]  # tokens that a budget buys, M F
    right = torch.searchsorted(D, wanted.contiguous()).clamp(1, len(D) - 1)
    low, high = D.log()[right - 1], D.log()[right]
    part = (wanted.log() - low) / (high - low)
    at = torch.lerp(loss.gather(1, right - 1), loss.gather(1, right), part)
    reached = (wanted >= D[0]) & (wanted <= D[-1])
    at = at.masked_fill(~reached, torch.inf)
    best = at.argmin(0)
    inside = _inside(reached, best)
    return flops[inside], N[best[inside]]


def _inside(reached: Tensor, best: Int[Tensor, " F"]) -> Tensor:
    """Whether a model on either side of the best one got as far."""
    padded = torch.nn.functional.pad(reached, (0, 0, 1, 1))  # nobody beyond the ends
    below, above = padded.gather(0, best[None]), padded.gather(0, best[None] + 2)
    return (below & above)[0]


def isoflop_optimum(N: Float[Tensor, " n"], loss: Float[Tensor, " n"]) -> float:
    """Approach 2: the vertex of a parabola through the losses of equal compute.

    Raises:
        ValueError: fewer than three sizes, or losses whose parabola has no minimum
            between the smallest and the largest size.

    >>> N = torch.tensor([1e6, 1e7, 1e8])
    >>> round(isoflop_optimum(N, torch.tensor([3.0, 2.0, 3.0])))
    10000000
    """
    enough = N.shape == loss.shape and len(N) >= 3
    require(enough, "N", N, "three sizes at least, with a loss each", "train more")
    u = N.double().log()
    powers = torch.stack([(u - u.mean()) ** k for k in range(3)], 1)
    _, b, c = torch.linalg.lstsq(powers, loss.double()[:, None]).solution[:, 0]
    vertex = u.mean() - b / (2 * c)
    found = bool(c > 0) and bool(u.min() < vertex) and bool(vertex < u.max())
    remedy = "train sizes on both sides of the best one"
    require(found, "loss", loss.tolist(), "least between the ends of N", remedy)
    return vertex.exp().item()
