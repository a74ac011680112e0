"""Menus: what a choice can write, and how likely each text is.

A menu is *prefix-free* if none of its texts begins another. Then at most one of them
can stand at a given place of a text, and whoever reads from left to right knows what
was chosen as soon as it is written. "ant" and "bee" are told apart at once; of "an" and
"ant" nobody can say which it was before having seen what follows.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any

from minillm.errors import require


@dataclass(frozen=True, eq=False)
class Menu:
    """Texts to choose from, with weights and with what each means to the program.

    Args:
        texts: what may be written.
        weights: not negative, in any unit; all equal if not given.
        values: what the program gets back; the texts themselves if not given.

    Raises:
        ValueError: no texts, a text given twice, a wrong number of weights or values,
            negative or infinite weights, weights that are all zero.

    >>> coin = Menu(("heads", "tails"), weights=(3, 1))
    >>> coin.probabilities, round(coin.nats[1], 3)
    ((0.75, 0.25), 1.386)
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] = ()
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        n, texts = len(self.texts), self.texts
        need = "different, and at least one"
        require(len({*texts}) == n > 0, "texts", texts, need, "correct the list")
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * n)
        object.__setattr__(self, "values", tuple(self.values) or texts)
        need = f"{n} long, like texts"
        for name in ("weights", "values"):
            given = getattr(self, name)
            require(len(given) == n, name, given, need, "give one for each text")
        fine = all(0 <= w < math.inf for w in self.weights) and sum(self.weights) > 0
        need = "finite, not negative, not all zero"
        require(fine, "weights", self.weights, need, "correct them")

    @cached_property
    def cumulative(self) -> tuple[float, ...]:
        """Running sums of the weights."""
        return tuple(accumulate(self.weights))

    @cached_property
    def probabilities(self) -> tuple[float, ...]:
        """Weights over their sum."""
        return tuple(weight / self.cumulative[-1] for weight in self.weights)

    @cached_property
    def nats(self) -> tuple[float, ...]:
        """-ln p of each text; infinity where the weight is zero."""
        return tuple(-math.log(p) if p else math.inf for p in self.probabilities)

    @cached_property
    def clash(self) -> tuple[str, str] | None:
        """Two texts of which one begins the other, or None if the menu is prefix-free.

        >>> Menu(("an", "ant", "bee")).clash
        ('an', 'ant')
        """
        # Sorted, whatever a text begins stands right behind it.
        both = pairwise(sorted(self.texts))
        return next(((a, b) for a, b in both if b.startswith(a)), None)

    def draw(self, u: float) -> int:
        """The index that a number drawn evenly from [0, 1) falls on."""
        index = bisect_right(self.cumulative, u * self.cumulative[-1])
        return min(index, len(self.texts) - 1)  # u * sum may round up to the sum

    def match(self, text: str, at: int) -> int | None:
        """The index of the menu's text that stands in ``text`` at ``at``, if any."""
        for length in self._lengths:
            index = self._index.get(text[at : at + length])
            if index is not None and self.weights[index]:
                return index
        return None

    def require_prefix_free(self) -> None:
        """Raise ``ValueError`` with the two texts that clash, if two do."""
        if self.clash:
            need = "prefix-free, or text could not be read back"
            require(False, "menu", self.clash, need, "end one of the two differently")

    def dressed(self, before: str) -> "Menu":
        """The same choice with ``before`` in front of every text (kept for next time).

        >>> Menu(("Ann", "Bo")).dressed(" ").texts
        (' Ann', ' Bo')
        """
        if before not in self._wardrobe:
            texts = tuple(before + text for text in self.texts)
            self._wardrobe[before] = Menu(texts, self.weights, self.values)
        return self._wardrobe[before]

    @cached_property
    def _wardrobe(self) -> dict[str, "Menu"]:
        return {}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(sorted({len(text) for text in self.texts}))


@cache
def menu(*texts: str) -> Menu:
    """A menu of equally likely texts; the same texts give the same object.

    >>> menu("red", "blue") is menu("red", "blue")
    True
    """
    return Menu(texts)
