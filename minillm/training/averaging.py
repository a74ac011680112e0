r"""Averages of weights along a run: less noise, for no training at all.

With a constant rate SGD ends up dancing around the minimum. The mean of where it has
been is nearer to it than most of these places, as the mean of measurements is nearer to
the truth than most of them. Two means are in use, and both are one line:

.. math:: \bar w \leftarrow \bar w + r (w - \bar w), \qquad
          r = 1 / n \ \text{(uniform, of n places)}, \qquad
          r = 1 - decay \ \text{(exponential)}

A rate that decays does the same work, so little is gained after a schedule that ends at
0. Averaging helps where the places lie in one valley: those of one run, not of two.

Sources: Polyak & Juditsky 1992; Izmailov et al. 2018 (SWA, arXiv 1803.05407);
Vaswani et al. 2017, section 6.1, who averaged their last five checkpoints.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minillm.errors import differences, require
from minillm.files import shapes
from minillm.model import GPT
from minillm.training.checkpoints import load_model


class WeightAverage:
    """A running mean of weights, in float64.

    Args:
        decay: of the exponential mean, which forgets after about 1 / (1 - decay)
            additions; ``None`` is the uniform mean. The first is taken as it is, so no
            correction for a start at 0 is needed.

    Raises:
        ValueError: a decay outside 0..1.

    >>> mean = WeightAverage()
    >>> for value in (1.0, 2.0, 6.0):
    ...     mean.add({"w": torch.tensor(value)})
    >>> mean.weights()["w"]
    tensor(3.)
    """

    def __init__(self, decay: float | None = None):
        fine = decay is None or 0 <= decay < 1
        require(fine, "decay", decay, "in 0..1, without 1", "try 0.99, or None")
        self.decay, self.count = decay, 0
        self.means: dict[str, Tensor] = {}
        self.like: dict[str, str] = {}  # shapes and types of what was added
        self.dtypes: dict[str, torch.dtype] = {}

    def add(self, weights: dict[str, Tensor]) -> None:
        """Take another place into the mean.

        Raises:
            ValueError: other names or shapes than before.
        """
        if self.count == 0:
            self.count = 1
            self.like = shapes(weights)
            self.dtypes = {name: w.dtype for name, w in weights.items()}
            self.means = {n: w.detach().double().clone() for n, w in weights.items()}
            return
        wrong = differences(self.like, shapes(weights))
        need = f"of the first one's names and shapes; differs in {[*wrong.items()][:3]}"
        require(not wrong, "weights", sorted(weights), need, "average one run")
        self.count += 1
        r = 1 / self.count if self.decay is None else 1 - self.decay
        for name, w in weights.items():
            self.means[name] = self.means[name].lerp(w.detach().double(), r)

    def weights(self) -> dict[str, Tensor]:
        """The mean, in the types of what was added.

        Raises:
            ValueError: nothing was added.
        """
        require(self.count > 0, "count", 0, "at least 1", "add weights first")
        return {name: mean.to(self.dtypes[name]) for name, mean in self.means.items()}


def average_checkpoints(paths: Sequence[str | Path]) -> GPT:
    """The model whose weights are the mean of several checkpoints'.

    Args:
        paths: files of ``save_checkpoint``, for instance the last k of a run.

    Raises:
        ValueError: no paths, files of different models or that are no checkpoints.
        FileNotFoundError: no such file.
    """
    require(len(paths) > 0, "paths", paths, "at least one", "name some checkpoints")
    mean = WeightAverage()
    for path in paths:
        model = load_model(path)
        mean.add(model.state_dict())
    model.load_state_dict(mean.weights())
    return model
