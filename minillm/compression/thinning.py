r"""Merging task vectors that were thinned out: TIES and DARE.

Two tasks want a weight to move in opposite directions, and their mean moves nowhere:
most conflicts are between a task that needs the weight and one that does not care. So
keep of each task vector only a part.

- **TIES**: the largest entries; then, for each weight, elect a sign by the sum over
  tasks, and average only those that agree with it.
- **DARE**: entries drawn at random, scaled up so that the expectation stays the same;
  then add.

Source: Yadav et al. 2023 (TIES, arXiv:2306.01708), algorithm 1; Yu et al. 2023 (DARE,
2311.03099), equations 1 and 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.compression.merging import (
    State,
    merge_each,
    task_vector,
    weighted_sum,
    weights_for,
)
from minillm.errors import require


def ties(
    base: State,
    models: Sequence[State],
    density: float = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> State:
    r"""Trim, elect a sign, and average those that agree with it.

    .. math:: \gamma = sign(\sum_i w_i \tilde\tau_i), \qquad
              \tau = \frac{\sum_{i: sign(\tilde\tau_i) = \gamma} w_i \tilde\tau_i}
                          {\sum_{i: sign(\tilde\tau_i) = \gamma} w_i}

    The sign is that of the *sum*: one task that wants to move far outvotes two that
    hardly want to move. Entries that were trimmed to 0 have no vote and are not counted
    in the mean.

    Args:
        base: the state dict that all models began with.
        models: of the tasks.
        density: the part of each task vector that is kept, over the whole model.
        scale: lambda, by which the merged vector is multiplied.
        weights: one for each model; equal ones if not given.

    Raises:
        ValueError: a density outside (0, 1], as ``task_arithmetic``.

    Differs from PEFT: there signs are elected without weights and means divide by the
    count. mergekit does as here. Both trim each tensor by itself; the paper trims the
    whole vector.

    >>> base = {"w": torch.zeros(3)}
    >>> tasks = [{"w": torch.tensor(t)} for t in ([3., 1., 0.], [-1., 2., 0.])]
    >>> ties(base, tasks, density=1.0)["w"]
    tensor([3.0000, 1.5000, 0.0000])
    """
    _require_density(density)
    weights = weights_for(models, weights)
    tasks = [trim(task_vector(base, model), density) for model in models]

    def merged(b: Tensor, x: Sequence[Tensor]) -> Tensor:
        tau = torch.stack([w * t for w, t in zip(weights, x[1:], strict=True)])
        agrees = (tau.sign() == tau.sum(0).sign()) & (tau != 0)
        w = torch.tensor(weights, dtype=tau.dtype).view(-1, *[1] * (tau.ndim - 1))
        count = (agrees * w).sum(0)
        return b + scale * (tau * agrees).sum(0) / torch.where(count == 0, 1.0, count)

    return merge_each([base, *tasks], merged)


def dare(
    base: State,
    models: Sequence[State],
    density: float = 0.2,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> State:
    r"""Drop most of each task vector at random, scale up the rest, and add.

    .. math:: \tilde\tau = \frac{m \odot \tau}{p}, \qquad m \sim Bernoulli(p), \quad
              E[\tilde\tau] = \tau

    Args:
        base: the state dict that all models began with.
        models: of the tasks.
        density: p, the part of each task vector that is kept. (DARE's own p is the part
            that is dropped.)
        weights: one for each; 1 if not given.
        seed: of the draws.

    Raises:
        ValueError: a density outside (0, 1], as ``task_arithmetic``.

    Differs from mergekit: it scales to the vector's old L1 norm and not by 1 / p.

    >>> base, task = {"w": torch.zeros(10_000)}, {"w": torch.ones(10_000)}
    >>> merged = dare(base, [task], density=0.5)["w"]
    >>> merged.unique(), bool((merged.mean() - 1).abs() < 0.05)
    (tensor([0., 2.]), True)
    """
    _require_density(density)
    dice = torch.Generator().manual_seed(seed)

    weights = weights_for(models, weights)

    def thin(x: Tensor) -> Tensor:
        keep = torch.rand(x.shape, generator=dice) < density
        return x * keep.to(x.device) / density

    vectors = [task_vector(base, model) for model in models]
    thinned = [{n: thin(x) for n, x in vector.items()} for vector in vectors]
    return merge_each([base, *thinned], lambda b, x: b + weighted_sum(weights, x[1:]))


def trim(vector: State, density: float) -> State:
    """Keep the largest entries of a whole model, and 0 for the rest.

    >>> trim({"w": torch.tensor([1.0, -3.0]), "v": torch.tensor([2.0, 0.5])}, 0.5)
    {'w': tensor([ 0., -3.]), 'v': tensor([2., 0.])}
    """
    _require_density(density)
    sizes = torch.cat([t.abs().flatten() for t in vector.values()])
    keep = max(1, round(density * len(sizes)))
    least = sizes.kthvalue(len(sizes) - keep + 1).values
    return {n: t.where(t.abs() >= least, 0.0) for n, t in vector.items()}


def _require_density(density: float) -> None:
    remedy = "0.2 keeps a fifth of each task vector"
    require(0 < density <= 1, "density", density, "in (0, 1]", remedy)
