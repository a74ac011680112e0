"""The settings of a world. Each default was chosen so that learning can be watched.

Frequencies follow Zipf's law, as words, names and facts do in every large collection of
text: the k-th most frequent of n has

    p(k) = k^-s / (1^-s + ... + n^-s)

With s = 1 and 400 people the first is mentioned 400 times as often as the last. A model
learns the head within minutes and the tail never, so recall can be drawn against
frequency, and loss falls as a power law while more of the tail is learned.

Source: Zipf, "Human Behavior and the Principle of Least Effort" (1949).
"""

import math
from dataclasses import dataclass

from minillm.errors import is_count, require

DOMAINS = (
    "biography",
    "dialogue",
    "table",
    "json",
    "story",
    "arithmetic",
    "task",
    "list",
)
MIXTURE = (0.40, 0.16, 0.06, 0.08, 0.03, 0.11, 0.13, 0.03)
FIRST, SECOND = "first", "second"  # the two languages


@dataclass(frozen=True)
class WorldConfig:
    """What there is in a world, how often it is talked about, and from which seeds.

    Args:
        seed: of names and of all text. Worlds of the same seed know the same people.
        facts: names a set of facts: ``WorldConfig(facts="other")`` is the second
            world, in which the same people live elsewhere and do other work.
        language: "first", or "second" for the same documents in other words.
        people: who are talked about; the k-th with Zipf frequency.
        silent: people who exist, with facts, and are never mentioned.
        cities: places to live in.
        zipf: the exponent s of people and cities; 0 makes all equally frequent.
        largest: the largest operand of the arithmetic.
        mixture: the probability of each domain, in the order of ``DOMAINS``.

    Raises:
        ValueError: counts that are none, more people than names, a negative exponent,
            an unknown language, weights that do not sum to one.

    >>> WorldConfig(zipf=-1)
    Traceback (most recent call last):
    ValueError: zipf must be a number of at least 0, got -1; try 1.0
    """

    seed: str = "tinyworld"
    facts: str = "first"
    language: str = FIRST
    people: int = 400
    silent: int = 100
    cities: int = 48
    zipf: float = 1.0
    largest: int = 19
    mixture: tuple[float, ...] = MIXTURE

    def __post_init__(self) -> None:
        for name in ("people", "silent", "cities", "largest"):
            value = getattr(self, name)
            require(is_count(value), name, value, "a positive int", "give at least 1")
        for name in ("seed", "facts"):
            value = getattr(self, name)
            require(isinstance(value, str), name, value, "a string", "put it in quotes")
        for name in ("people", "cities"):
            value, need = getattr(self, name), "at least 2, or facts tell nothing"
            require(value >= 2, name, value, need, "make the world larger")
        known, need = self.language in (FIRST, SECOND), f"{FIRST!r} or {SECOND!r}"
        require(known, "language", self.language, need, "choose one")
        fine = isinstance(self.zipf, int | float) and 0 <= self.zipf < math.inf
        require(fine, "zipf", self.zipf, "a number of at least 0", "try 1.0")
        self._check_mixture()

    def _check_mixture(self) -> None:
        weights, n = self.mixture, len(DOMAINS)
        need = f"a tuple of {n} weights, one for each of {', '.join(DOMAINS)}"
        fits = isinstance(weights, tuple) and len(weights) == n
        require(fits, "mixture", weights, need, "give 0 to what you leave out")
        positive = all(weight >= 0 for weight in weights)
        require(positive, "mixture", weights, "not negative", "give 0 at least")
        total, need = math.fsum(weights), "weights that sum to 1"
        one = math.isclose(total, 1, abs_tol=1e-9)
        require(one, "mixture", f"the sum {total:g}", need, "divide them by their sum")


def zipf_weights(n: int, exponent: float) -> tuple[float, ...]:
    """The probabilities of ranks 1 to n under Zipf's law.

    >>> [round(p, 3) for p in zipf_weights(3, exponent=1.0)]
    [0.545, 0.273, 0.182]
    """
    weights = [rank**-exponent for rank in range(1, n + 1)]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
