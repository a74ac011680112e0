"""TinyWorld: a language whose truth is known.

Nobody knows the entropy of English, so nobody can say how far a model of English is
from the best there can be. Here it is known. A document is drawn from P, and its
account of nats says what -ln P is. For any model Q

    E[-ln Q(document)] - E[floor(document)] = KL(P || Q) >= 0

in nats a document, where ``floor`` is -ln P(document) for a reader who knows the world.
No training can bring the mean loss below it, and what lies above it is exactly what the
model has still to learn. It splits by kind of text: what it cannot work out
(predictable), does not know (remembered), or takes for likelier than it is
(irreducible). A model that knows no fact, but all else, stands at ``nats`` instead.

Four things belong to it. The mean is over documents: a single one may be luckier than
its floor, and the mean of n has a standard error of std / sqrt(n). Documents are
independent and are read from their beginning; a model that sees half of one cannot
reach the floor. The end of a document follows from it, so the end-of-text token costs
nothing. And ``nats`` counts each document by itself: whoever has read others knows
facts, and that is what memory is for.
"""

from collections.abc import Iterator
from functools import cached_property

from minillm.errors import require
from minillm.world import skills, telling
from minillm.world.config import DOMAINS, SECOND, WorldConfig
from minillm.world.interpreters import NotInWorld, read, sample
from minillm.world.language import SecondLanguage
from minillm.world.lore import Lore
from minillm.world.menus import Menu
from minillm.world.recorder import Document, Recorder

# How a document of each domain begins, and the program that goes on.
PROGRAMS = {
    "biography": ("About", telling.biography),
    "dialogue": ("Question:", telling.dialogue),
    "table": ("Table of", telling.table),
    "json": ('{"name":', telling.json),
    "story": ("Once", skills.story),
    "arithmetic": ("Compute", skills.arithmetic),
    "task": ("Task:", skills.task),
    "list": ("List of", skills.shopping),
}


class World:
    """The world that a config describes, and its documents.

    >>> world = World()
    >>> document = world.document(0)
    >>> document.text, round(document.floor, 2), round(document.nats, 2)
    ('About Lifa Ganins: Lifa Ganins owns a turtle, trained as a banker.', 10.23, 16.11)
    >>> world.read(document.text) == document
    True
    """

    def __init__(self, config: WorldConfig | None = None):
        self.config = config or WorldConfig()
        self.lore = Lore(self.config)
        heads = tuple(PROGRAMS[name][0] for name in DOMAINS)
        self.domains = Menu(heads, self.config.mixture, values=DOMAINS)

    def program(self, r: Recorder) -> None:
        """Write one document: its domain first, then what the domain's program adds."""
        domain = r.choose(self.domains)
        PROGRAMS[domain][1](r, self.lore)

    def document(self, index: int, stream: str = "train") -> Document:
        """Document number ``index`` of a stream, whatever was asked before.

        Streams are independent: a document of "test" says nothing about those of
        "train" but what is true of the world.
        """
        seed = f"{self.config.seed}/{stream}/{index}"
        return self._say(sample(self.program, seed, self.lore.facts))

    def documents(self, n: int, stream: str = "train") -> Iterator[Document]:
        """The first n documents of a stream."""
        return (self.document(index, stream) for index in range(n))

    def read(self, text: str) -> Document:
        """The account of a text that this world can have produced.

        Raises:
            NotInWorld: it cannot have; the error says from which character on. A false
                fact is impossible, and so is a wrong result.
        """
        second = self.config.language == SECOND
        first = self.language.back(text) if second else text
        document = self._say(read(self.program, first, self.lore.facts))
        if document.text != text:  # a name that is no name when it is translated back
            raise NotInWorld(text, 0, repr(document.text[:12]))
        return document

    def domain(self, document: Document) -> str:
        """The domain that a document belongs to."""
        head = document.segments[0].menu
        require(head is not None, "document", document.text, "of this world", "read it")
        return head.values[head.match(document.text, 0)]

    @cached_property
    def language(self) -> SecondLanguage:
        """The second language; names are spelled alike in both."""
        lore = self.lore
        everybody = lore.people + lore.silent + lore.strangers
        parts = {part for name in everybody for part in name.split()}
        rivers = lore.relations["river"].values.texts
        return SecondLanguage(parts.union(lore.cities, rivers))

    def _say(self, document: Document) -> Document:
        second = self.config.language == SECOND
        return self.language.document(document) if second else document
