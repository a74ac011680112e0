r"""Merging: several fine-tuned models into one, without any data.

Models that were fine-tuned from one base lie near it. What each has learned is a
*task vector*, the difference of its weights from the base's:

.. math:: \tau_i = \theta_i - \theta_0

- **Soup**: the mean of the weights, or a weighted one.
- **Task arithmetic**: :math:`\theta_0 + \lambda \sum \tau_i`; subtracting forgets.
- **TIES**: of each task vector keep the largest entries; of each weight, elect a sign
  by the sum over tasks; then average only those that agree with it.
- **DARE**: drop entries of each task vector at random and scale up what is left, so
  that its expectation is the same; then add.
- **SLERP**: go from one model to another along the arc between them, not the chord: the
  mean of two long vectors at an angle is shorter than both.

Weights of different bases have no common meaning: nothing here would notice.

Source: Wortsman et al. 2022 (soups, arXiv:2203.05482); Ilharco et al. 2022 (task
arithmetic, 2212.04089), section 2; Yadav et al. 2023 (TIES, 2306.01708), algorithm 1;
Yu et al. 2023 (DARE, 2311.03099), equations 1 and 2; Shoemake 1985 (SLERP).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.errors import differences, require
from minillm.files import shapes

State = dict[str, Tensor]  # as model.state_dict() gives it


def soup(models: Sequence[State], weights: Sequence[float] | None = None) -> State:
    """The mean of the weights of several models.

    Args:
        models: state dicts of one shape.
        weights: one for each, divided by their sum; equal ones if not given.

    Raises:
        ValueError: no model, other shapes, unequal numbers, weights that sum to 0.

    >>> soup([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}])
    {'w': tensor(2.)}
    """
    weights = _weights(models, weights)
    total = sum(weights)
    need, remedy = "weights that do not sum to 0", "give positive ones"
    require(total != 0, "weights", weights, need, remedy)
    return _each(models, lambda _, x: _sum(weights, x) / total)


def task_arithmetic(
    base: State, models: Sequence[State], weights: Sequence[float] | None = None
) -> State:
    """The base plus the weighted task vectors; a negative weight takes one away.

    Args:
        base: the state dict that all models began with.
        models: of the tasks.
        weights: one for each; 1 if not given.

    Raises:
        ValueError: no model, other shapes, unequal numbers.

    >>> base, task = {"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}
    >>> task_arithmetic(base, [task, task], [1.0, -0.5])
    {'w': tensor(2.)}
    """
    weights = _weights(models, weights)
    vectors = [task_vector(base, model) for model in models]
    return _each([base, *vectors], lambda b, x: b + _sum(weights, x[1:]))


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
    weights = _weights(models, weights)
    tasks = [trim(task_vector(base, model), density) for model in models]

    def merged(b: Tensor, x: Sequence[Tensor]) -> Tensor:
        tau = torch.stack([w * t for w, t in zip(weights, x[1:], strict=True)])
        agrees = (tau.sign() == tau.sum(0).sign()) & (tau != 0)
        w = torch.tensor(weights, dtype=tau.dtype).view(-1, *[1] * (tau.ndim - 1))
        count = (agrees * w).sum(0)
        return b + scale * (tau * agrees).sum(0) / torch.where(count == 0, 1.0, count)

    return _each([base, *tasks], merged)


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

    weights = _weights(models, weights)

    def thin(x: Tensor) -> Tensor:
        keep = torch.rand(x.shape, generator=dice) < density
        return x * keep.to(x.device) / density

    vectors = [task_vector(base, model) for model in models]
    thinned = [{n: thin(x) for n, x in vector.items()} for vector in vectors]
    return _each([base, *thinned], lambda b, x: b + _sum(weights, x[1:]))


def slerp(a: State, b: State, t: float) -> State:
    r"""Along the arc from a (t = 0) to b (t = 1), each tensor by itself.

    .. math:: \frac{\sin((1 - t) \Omega)}{\sin \Omega} a +
              \frac{\sin(t \, \Omega)}{\sin \Omega} b, \qquad
              \cos \Omega = \frac{a \cdot b}{|a| |b|}

    Where both point the same way or opposite ways, or one is 0, it is a straight line.

    Raises:
        ValueError: other shapes, a t that is no number.

    >>> slerp({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, 0.5)
    {'w': tensor([0.7071, 0.7071])}
    """
    require(t == t, "t", t, "a number", "0 is the first model, 1 the second")

    def arc(_: Tensor, x: Sequence[Tensor]) -> Tensor:
        first, second = x
        size = (first.norm() * second.norm()).item()
        cosine = (first * second).sum().item() / size if size > 0 else 1.0
        if abs(cosine) > 0.9995:
            return (1 - t) * first + t * second
        angle = torch.tensor(cosine, dtype=torch.float64).acos()
        ends = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
        return ends[0].item() * first + ends[1].item() * second

    return _each([a, b], arc)


def task_vector(base: State, model: State) -> State:
    """What a model has learned: its weights less the base's.

    >>> task_vector({"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)})
    {'w': tensor(2.)}
    """
    return _each([base, model], lambda b, x: x[1] - b)


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


def _sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return sum(w * x for w, x in zip(weights, tensors, strict=True))


def _each(
    models: Sequence[State], merge: Callable[[Tensor, Sequence[Tensor]], Tensor]
) -> State:
    """Merge tensor by tensor; the first model is handed over once more, as base."""
    _require_alike(models)
    return {n: merge(x, [model[n] for model in models]) for n, x in models[0].items()}


def _weights(models: Sequence[State], weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * len(models) if weights is None else list(weights)
    need, remedy = f"one for each of {len(models)} models", "give as many"
    require(len(weights) == len(models) > 0, "weights", len(weights), need, remedy)
    return weights


def _require_alike(models: Sequence[State]) -> None:
    for model in models[1:]:
        wrong = differences(shapes(models[0]), shapes(model))
        need = f"of the same names and shapes; differs in {[*wrong.items()][:3]}"
        remedy = "merge models of one base"
        require(not wrong, "models", f"{len(models)} models", need, remedy)


def _require_density(density: float) -> None:
    remedy = "0.2 keeps a fifth of each task vector"
    require(0 < density <= 1, "density", density, "in (0, 1]", remedy)
