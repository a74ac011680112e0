"""Three readings of one program: draw a document, list them all, find how one was made.

A program calls a recorder's ``write``, ``choose`` and ``recall`` and does not know who
decides. Dice decide when it is sampled. A counter that runs through all sequences of
choices decides when it is enumerated. The text itself decides when it is read: at each
choice, at most one text of a prefix-free menu can stand there.

So the counted nats can be trusted: the probabilities of an enumeration must add up to
one, and reading a sampled text must give back the choices of the dice.
"""

from collections.abc import Iterator
from random import Random

from minillm.errors import require
from minillm.world.menus import Menu
from minillm.world.recorder import Document, Facts, Program, Recorder


class AmbiguousGrammar(ValueError):
    """Two derivations write the same text, so its probability is not one product."""


class NotInWorld(ValueError):
    """No derivation writes this text; ``position`` is where it becomes impossible."""

    def __init__(self, text: str, position: int, expected: str):
        self.position = position
        here = f"{text[max(0, position - 20) : position]!r}"
        found = repr(text[position : position + 12]) if position < len(text) else "end"
        where = f"after {here} (character {position}) came {found}"
        super().__init__(f"no derivation writes this text: {where}, not {expected}")


def sample(program: Program, seed: str, facts: Facts | None = None) -> Document:
    """Draw a document; the same seed gives the same one on every Python.

    Of Python's generators only ``random()`` with a string seed is used, because that is
    what Python promises to keep ("Notes on Reproducibility" in its documentation).

    >>> from minillm.world.menus import menu
    >>> def weather(r):
    ...     r.write("It is")
    ...     r.choose(menu(" wet", " dry", " fine"))
    >>> document = sample(weather, seed="monday")
    >>> document.text, round(document.nats, 3)
    ('It is dry', 1.099)
    """
    dice = Random(seed).random

    def decide(menu: Menu, recorder: Recorder) -> int:
        menu.require_prefix_free()
        return menu.draw(dice())

    recorder = Recorder(decide, facts)
    program(recorder)
    return recorder.document()


def enumerate_documents(
    program: Program, facts: Facts | None = None
) -> Iterator[Document]:
    """Every document that a small program can write, each with its exact nats.

    Each run follows a given path of choices and takes the first option from there on;
    the other options that it passes are paths for later runs. Any menus are allowed,
    so that ambiguous grammars can be looked at too.

    >>> from math import exp
    >>> from minillm.world.menus import Menu
    >>> def coins(r):
    ...     if r.choose(Menu(("h", "t"), (3, 1))) == "h":
    ...         r.choose(Menu(("h", "t")))
    >>> [(d.text, round(exp(-d.nats), 3)) for d in enumerate_documents(coins)]
    [('hh', 0.375), ('ht', 0.375), ('t', 0.25)]
    """
    paths: list[tuple[int, ...]] = [()]
    while paths:
        path, taken = paths.pop(), []

        def decide(menu: Menu, recorder: Recorder, path=path, taken=taken) -> int:
            possible = [i for i, weight in enumerate(menu.weights) if weight]
            depth = len(taken)
            if depth >= len(path):
                others = reversed(possible[1:])  # so that the next one comes up first
                paths.extend((*taken, other) for other in others)
            taken.append(path[depth] if depth < len(path) else possible[0])
            return taken[-1]

        recorder = Recorder(decide, facts)
        program(recorder)
        yield recorder.document()


def check_unambiguous(
    program: Program, facts: Facts | None = None, limit: int = 100_000
) -> int:
    """Prove by enumeration that no two derivations write the same text.

    Prefix-free menus make it true for every program; this is the proof that looks.

    Returns:
        the number of documents.

    Raises:
        AmbiguousGrammar: with the text and the two derivations that collide.
        ValueError: more than ``limit`` documents.

    >>> from minillm.world.menus import menu
    >>> def clock(r):
    ...     r.choose(menu("1", "11"))
    ...     r.choose(menu("1", "11"))
    >>> check_unambiguous(clock)
    Traceback (most recent call last):
    AmbiguousGrammar: '111' is written by ('1', '11') and by ('11', '1')
    """
    found: dict[str, tuple[str, ...]] = {}
    for document in enumerate_documents(program, facts):
        text, choices = document.text, document.choices
        if text in found:
            both = f"by {found[text]} and by {choices}"
            raise AmbiguousGrammar(f"{text!r} is written {both}")
        found[text] = choices
        few = len(found) <= limit
        remedy = "enumerate a smaller program, or keep its menus prefix-free"
        require(few, "limit", limit, "at least the number of documents", remedy)
    return len(found)


def read(program: Program, text: str, facts: Facts | None = None) -> Document:
    """Find the derivation that writes ``text``, and with it the exact nats.

    Raises:
        NotInWorld: no derivation does; it says from which character on.

    >>> from minillm.world.menus import menu
    >>> def weather(r):
    ...     r.write("It is")
    ...     r.choose(menu(" wet", " dry", " fine"))
    >>> read(weather, "It is dry").choices
    (' dry',)
    >>> read(weather, "It is dull")
    Traceback (most recent call last):
    NotInWorld: ... after 'It is d' (character 7) came 'ull', not one of ' dry'
    """

    def decide(menu: Menu, recorder: Recorder) -> int:
        menu.require_prefix_free()
        _agree(recorder, text)
        index = menu.match(text, recorder.length)
        if index is None:
            raise _impossible(menu, text, recorder.length)
        return index

    recorder = Recorder(decide, facts)
    program(recorder)
    _agree(recorder, text)
    if recorder.length < len(text):
        raise NotInWorld(text, recorder.length, "the end")
    return recorder.document()


def _agree(recorder: Recorder, text: str) -> None:
    """Raise unless the text begins with what the program has written so far."""
    written = "".join(recorder.parts)
    if not text.startswith(written):
        shared = _shared(written, text)
        raise NotInWorld(text, shared, repr(written[shared : shared + 12]))


def _impossible(menu: Menu, text: str, at: int) -> NotInWorld:
    """The error for a text at ``at`` that is none of the menu's."""
    rest = text[at:]
    shared = max(_shared(rest, option) for option in menu.texts)
    near = [t for t in menu.texts if t.startswith(rest[:shared])]
    shown = ", ".join(map(repr, near[:3])) + (", ..." if len(near) > 3 else "")
    return NotInWorld(text, at + shared, f"one of {shown}")


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common from the left."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))
