"""How text is made so that its information can be counted.

A language whose truth is known is a program that makes choices and writes text. Every
choice is drawn from a ``Menu`` of texts with weights, and what was chosen is written at
once. The recorder adds up what each choice cost, in nats:

    nats(choice) = -ln p(choice),      P(document) = exp(-sum of its choices' nats)

The second formula needs one more thing: no two derivations may write the same text, or
their probabilities would add up. It holds for every program whose menus are
*prefix-free*, that is, no text of a menu begins another text of it:

    Take two derivations and the first choice in which they differ. Until then all is
    equal, so both draw from the same menu and write different texts of it; neither
    begins the other, so the documents differ from there on, whatever follows.

So text can be read from left to right, choice by choice, without ever looking ahead.
This is the condition of an instantaneous code (Cover and Thomas, "Elements of
Information Theory", section 5.1); here it makes probabilities exact.

There are three kinds of text, by who has to pay for it:

    predictable    follows from what stands before it: 0 nats for everybody
    irreducible    a free choice: -ln p nats for everybody, even for who knows it all
    remembered     a fact of this world: 0 nats for a reader who knows the world's
                   facts, -ln of the fact's prior for one who knows only the language
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from minillm.errors import require

PREDICTABLE, REMEMBERED, IRREDUCIBLE = "predictable", "remembered", "irreducible"
KINDS = (PREDICTABLE, REMEMBERED, IRREDUCIBLE)

Facts = Mapping[tuple[str, str], int]  # (subject, relation) -> index in a menu


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


class Segment(NamedTuple):
    """A stretch of a document: where it stands, what it cost, and what was possible."""

    start: int
    end: int
    nats: float
    kind: str
    menu: Menu | None = None  # None where nothing else could have stood


@dataclass(frozen=True)
class Document:
    """A text and the exact account of its information.

    ``floor`` is -ln P(text) for a reader who knows the world, facts and all. ``nats``
    is the same for a reader who knows the language and its odds but no fact of this
    world: -ln of P(text) averaged over all worlds that could have been drawn.
    """

    text: str
    segments: tuple[Segment, ...]

    def total(self, kind: str) -> float:
        """Nats of one kind."""
        return math.fsum(s.nats for s in self.segments if s.kind == kind)

    @property
    def floor(self) -> float:
        """What no model can save in the mean: the irreducible nats."""
        return self.total(IRREDUCIBLE)

    @property
    def nats(self) -> float:
        """Irreducible and remembered nats together."""
        return math.fsum(segment.nats for segment in self.segments)

    @property
    def choices(self) -> tuple[str, ...]:
        """The derivation: what was chosen, in order."""
        return tuple(self.text[s.start : s.end] for s in self.segments if s.menu)


class Recorder:
    """What a program talks to: ``write``, ``choose`` and ``recall``.

    Args:
        decide: (menu, recorder) -> index. Who decides is the whole difference between
            sampling, enumerating and reading (``minillm.world.interpreters``).
        facts: of a world; None for a reader who knows none, to whom a fact is a
            choice the first time that a document states it.
    """

    def __init__(self, decide: "Decide", facts: Facts | None = None):
        self.decide, self.facts = decide, facts
        self.parts: list[str] = []
        self.segments: list[Segment] = []
        self.length = 0
        self.stated: dict[tuple[str, str], int] = {}

    def write(self, text: str) -> None:
        """Write what follows from what stands before it."""
        start, last = self.length, self.segments[-1] if self.segments else None
        if last and last.kind == PREDICTABLE and not last.menu:
            start = self.segments.pop().start
        self._add(text, Segment(start, self.length + len(text), 0.0, PREDICTABLE))

    def choose(self, menu: Menu) -> Any:
        """Choose from a menu, freely; write the text and return its value."""
        index = self.decide(menu, self)
        self._record(menu, index, IRREDUCIBLE)
        return menu.values[index]

    def recall(self, subject: str, relation: str, menu: Menu) -> Any:
        """Write a fact and return its value.

        Counted once a document, at its prior in ``menu``: repeated, it is predictable.
        """
        fact = subject, relation
        if fact in self.stated:
            self.write(menu.texts[self.stated[fact]])
        else:
            menu.require_prefix_free()
            known = self.facts is not None
            index = self.facts[fact] if known else self.decide(menu, self)
            self.stated[fact] = index
            self._record(menu, index, REMEMBERED)
        return menu.values[self.stated[fact]]

    def document(self) -> Document:
        """Everything that was recorded."""
        return Document("".join(self.parts), tuple(self.segments))

    def _record(self, menu: Menu, index: int, kind: str) -> None:
        text, start = menu.texts[index], self.length
        kind = kind if len(menu.texts) > 1 else PREDICTABLE
        segment = Segment(start, start + len(text), menu.nats[index], kind, menu)
        self._add(text, segment)

    def _add(self, text: str, segment: Segment) -> None:
        self.parts.append(text)
        self.segments.append(segment)
        self.length = segment.end


Decide = Callable[[Menu, Recorder], int]
Program = Callable[[Recorder], None]
