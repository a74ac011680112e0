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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minillm.world.menus import Menu

PREDICTABLE, REMEMBERED, IRREDUCIBLE = "predictable", "remembered", "irreducible"
KINDS = (PREDICTABLE, REMEMBERED, IRREDUCIBLE)

Facts = Mapping[tuple[str, str], int]  # (subject, relation) -> index in a menu


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
