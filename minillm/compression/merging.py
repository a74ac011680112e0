r"""Merging: several fine-tuned models into one, without any data.

Models that were fine-tuned from one base lie near it. What each has learned is a
*task vector*, the difference of its weights from the base's:

.. math:: \tau_i = \theta_i - \theta_0

- **Soup**: the mean of the weights, or a weighted one.
- **Task arithmetic**: :math:`\theta_0 + \lambda \sum \tau_i`; subtracting forgets.
- **SLERP**: go from one model to another along the arc between them, not the chord: the
  mean of two long vectors at an angle is shorter than both.

Two methods that first thin task vectors out, TIES and DARE, are in ``thinning``.
Weights of different bases have no common meaning: nothing here would notice.

Source: Wortsman et al. 2022 (soups, arXiv:2203.05482); Ilharco et al. 2022 (task
arithmetic, 2212.04089), section 2; Shoemake 1985 (SLERP).
"""

import math
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
    weights = weights_for(models, weights)
    total = sum(weights)
    need, remedy = "weights that do not sum to 0", "give positive ones"
    require(total != 0, "weights", weights, need, remedy)
    return merge_each(models, lambda _, x: weighted_sum(weights, x) / total)


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
    weights = weights_for(models, weights)
    vectors = [task_vector(base, model) for model in models]
    return merge_each([base, *vectors], lambda b, x: b + weighted_sum(weights, x[1:]))


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
    require(math.isfinite(t), "t", t, "a number", "0 is the first model, 1 the second")

    def arc(_: Tensor, x: Sequence[Tensor]) -> Tensor:
        first, second = x
        size = (first.norm() * second.norm()).item()
        cosine = (first * second).sum().item() / size if size > 0 else 1.0
        if abs(cosine) > 0.9995:
            return (1 - t) * first + t * second
        angle = torch.tensor(cosine, dtype=torch.float64).acos()
        ends = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
        return ends[0].item() * first + ends[1].item() * second

    return merge_each([a, b], arc)


def task_vector(base: State, model: State) -> State:
    """What a model has learned: its weights less the base's.

    >>> task_vector({"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)})
    {'w': tensor(2.)}
    """
    return merge_each([base, model], lambda b, x: x[1] - b)


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors, each times its weight.

    >>> weighted_sum([2.0, -1.0], [torch.tensor(3.0), torch.tensor(1.0)])
    tensor(5.)
    """
    return sum(w * x for w, x in zip(weights, tensors, strict=True))


def merge_each(
    models: Sequence[State], merge: Callable[[Tensor, Sequence[Tensor]], Tensor]
) -> State:
    """Merge tensor by tensor: ``merge(first, all)``.

    Raises:
        ValueError: models of other names or shapes than the first, weights that are
            not finite.

    >>> merge_each([{"w": torch.ones(2)}] * 3, lambda first, all: sum(all))
    {'w': tensor([3., 3.])}
    """
    for model in models[1:]:
        wrong = differences(shapes(models[0]), shapes(model))
        need = f"of the same names and shapes; differs in {[*wrong.items()][:3]}"
        remedy = "merge models of one base"
        require(not wrong, "models", f"{len(models)} models", need, remedy)
    for i, model in enumerate(models):
        broken = [n for n, x in model.items() if not x.isfinite().all()]
        need, remedy = "without NaN or infinite weights", "leave that one out"
        require(not broken, f"model {i}", broken[:3], need, remedy)
    return {n: merge(x, [model[n] for model in models]) for n, x in models[0].items()}


def weights_for(
    models: Sequence[State], weights: Sequence[float] | None
) -> list[float]:
    """One weight for each model; 1 if none are given.

    >>> weights_for([{}, {}], None)
    [1.0, 1.0]
    """
    weights = [1.0] * len(models) if weights is None else list(weights)
    need, remedy = f"one for each of {len(models)} models", "give as many"
    require(len(weights) == len(models) > 0, "weights", len(weights), need, remedy)
    finite = all(map(math.isfinite, weights))
    require(finite, "weights", weights, "finite", "give numbers")
    return weights
