r"""When an ability seems to appear at once, is it the model or the metric?

Suppose that larger models predict each token of an answer a little better:

.. math:: p(N) = \frac{1}{1 + e^{-1.2\,(\log_{10} N - 8)}}

An answer of L tokens is right if all of them are. If they err independently, exact
match is p^L: nearly zero for most models, and then high. Nothing has jumped but the
metric (Schaeffer et al. 2023, section 2). The curve p(N) is made up, and smooth on
purpose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minillm.errors import is_count, require, require_one_of

METRICS = ("token accuracy", "exact match", "log likelihood")
LOW, HIGH = 0.05, 0.5  # "nothing yet", as a share of the rise; "it can do it"


@dataclass(frozen=True)
class Emergence:
    """An experiment: on the same models one metric seems to jump, another does not.

    Args:
        sudden: the metric that seems to jump.
        smooth: the metric that does not.
        length: tokens in an answer.
        sizes: of the models, as powers of ten of their parameters.

    Raises:
        ValueError: an unknown metric; a length that is not in 1..1000; not 5 to 12
            sizes, or sizes that do not rise from 6 or more to 12 or less.
    """

    sudden: str
    smooth: str
    length: int
    sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        require_one_of(METRICS, sudden=self.sudden, smooth=self.smooth)
        fits = is_count(self.length) and self.length <= 1000
        require(fits, "length", self.length, "in 1..1000", "count tokens of an answer")
        rising = list(self.sizes) == sorted(set(self.sizes))
        inside = 5 <= len(self.sizes) <= 12 and all(6 <= x <= 12 for x in self.sizes)
        wanted = "5 to 12 rising numbers in 6..12"
        remedy = "give powers of ten, 6 for a million parameters"
        require(rising and inside, "sizes", self.sizes, wanted, remedy)


def token_accuracy(log10_params: float) -> float:
    """The share of tokens that a model of that size gets right, in this made-up world.

    >>> token_accuracy(8.0)
    0.5
    """
    return 1 / (1 + math.exp(-1.2 * (log10_params - 8)))


def curve(metric: str, length: int, sizes: Sequence[float]) -> list[float]:
    """What a metric says of models of those sizes, on answers of ``length`` tokens.

    >>> [round(y, 2) for y in curve("exact match", 2, [8.0, 12.0])]
    [0.25, 0.98]
    """
    require_one_of(METRICS, metric=metric)
    p = [token_accuracy(x) for x in sizes]
    if metric == "exact match":
        return [y**length for y in p]
    return [math.log(y) for y in p] if metric == "log likelihood" else p


def still_low(values: Sequence[float]) -> float:
    """The share of models that have made less than 5 % of the whole rise.

    >>> still_low([0.0, 0.01, 0.02, 1.0]), still_low([0.0, 0.3, 0.6, 1.0])
    (0.75, 0.25)
    """
    rise = values[-1] - values[0]
    return sum(y - values[0] < LOW * rise for y in values) / len(values)


def outcome(experiment: Emergence) -> dict[str, bool]:
    """What an experiment shows; it has shown its point if all four are true.

    >>> sizes = (6, 7, 8, 9, 10, 11, 12)
    >>> shown = outcome(Emergence("token accuracy", "exact match", 30, sizes))
    >>> [claim for claim, holds in shown.items() if not holds][0]
    'the sudden metric is low for more than half of the models'
    """
    length, sizes = experiment.length, experiment.sizes
    sudden = curve(experiment.sudden, length, sizes)
    smooth = curve(experiment.smooth, length, sizes)
    tokens = curve("token accuracy", length, sizes)
    late, early = still_low(sudden) > 0.5, still_low(smooth) <= 0.25
    return {
        "the sudden metric is low for more than half of the models": late,
        "the sudden metric ends high": sudden[-1] > HIGH,
        "the smooth metric rises from the first models on": early,
        "token accuracy rises from the first models on": still_low(tokens) <= 0.25,
    }
