r"""A pushdown automaton that reads JSON byte by byte, and knows what may come next.

Its state is all that is still to come: a row of symbols, the next one first. A byte
replaces the first symbol by those of a rule:

    state   (value, space)          and in comes  [
            (items, space)                        -
            (minus, after item, space)            0
            (fraction, after item, space)         ]
            (space,)

A symbol that may be empty (the further digits of a number) is passed over by a byte
which it cannot read. Where all that is left may be empty, the text is complete. The row
is the stack: brackets nest, and no finite number of states could count them.

How many bytes a state is from its end is a sum over its symbols,

.. math:: d(s) = \sum_i c(s_i), \qquad
          c(s) = \min_{rule} \Big(1 + \sum_{r \in rule} c(r)\Big), \qquad
          c(s) = 0 \text{ where } s \text{ may be empty}

so whoever writes can be told to close in time. A schema is only another state to begin
with: one in which keys and punctuation are bytes that have to come.

Source: RFC 8259 (the grammar), RFC 3629 section 4 (UTF-8); an LL(1) parser as in Aho et
al. 2006, section 4.4. Differs from ``json.loads``: NaN and Infinity are no JSON, and
nesting is limited; Python reads no integer of more than 4,300 digits, and here there is
no such limit. A key that stands twice is accepted by both.
"""

import json
from typing import Any

from minillm.errors import require

Symbol = str | int  # an int is a byte that has to come
State = tuple[Symbol, ...]

SPACES, DIGITS, LEADING = b" \t\n\r", b"0123456789", b"123456789"
TAIL = range(0x80, 0xC0)
NUMBER = {b"-": ("minus",), b"0": ("fraction",), LEADING: ("integer digits",)}
TRUTH = {b"t": tuple(b"rue"), b"f": tuple(b"alse")}
OPENINGS = {b"{": ("members",), b"[": ("items",), b'"': ("characters",)}
VALUE = NUMBER | TRUTH | OPENINGS | {b"n": tuple(b"ull")}
PAIR = ("characters", "colon", "value", "after member")
POINT = {b".": ("digit", "decimals"), b"eE": ("exponent",)}
# For each symbol: what may come, and what is to come then.
RULES: dict[str, dict[bytes | range, State]] = {
    "space": {SPACES: ("space",)},
    "value": VALUE | {SPACES: ("value",)},
    "items": {byte: (*after, "after item") for byte, after in VALUE.items()}
    | {SPACES: ("items",), b"]": ()},
    "after item": {SPACES: ("after item",), b",": ("value", "after item"), b"]": ()},
    "members": {SPACES: ("members",), b'"': PAIR, b"}": ()},
    "after member": {SPACES: ("after member",), b",": ("member",), b"}": ()},
    "member": {SPACES: ("member",), b'"': PAIR},
    "colon": {SPACES: ("colon",), b":": ()},
    # numbers
    "number": NUMBER,
    "minus": {b"0": ("fraction",), LEADING: ("integer digits",)},
    "integer digits": {DIGITS: ("integer digits",)} | POINT,
    "fraction": POINT,
    "decimals": {DIGITS: ("decimals",), b"eE": ("exponent",)},
    "exponent": {b"+-": ("digit", "digits"), DIGITS: ("digits",)},
    "digit": {DIGITS: ()},
    "digits": {DIGITS: ("digits",)},
    "whole": {b"-": ("positive",), b"0": (), LEADING: ("digits",)},
    "positive": {b"0": (), LEADING: ("digits",)},
    "truth": TRUTH,
    # strings, character by character; their bytes in UTF-8, as the RFC lists them
    "string": {b'"': ("characters",)},
    "characters": {
        bytes({*range(0x20, 0x80)} - {*b'"\\'}): ("characters",),
        b'"': (),
        b"\\": ("escape", "characters"),
        range(0xC2, 0xE0): ("tail", "characters"),
        b"\xe0": ("tail from a0", "tail", "characters"),
        b"\xed": ("tail to 9f", "tail", "characters"),
        bytes({*range(0xE1, 0xF0)} - {0xED}): ("tail", "tail", "characters"),
        b"\xf0": ("tail from 90", "tail", "tail", "characters"),
        range(0xF1, 0xF4): ("tail", "tail", "tail", "characters"),
        b"\xf4": ("tail to 8f", "tail", "tail", "characters"),
    },
    "escape": {b'"\\/bfnrt': (), b"u": ("hex",) * 4},
    "hex": {b"0123456789abcdefABCDEF": ()},
    "tail": {TAIL: ()},
    "tail from a0": {range(0xA0, 0xC0): ()},
    "tail to 9f": {range(0x80, 0xA0): ()},
    "tail from 90": {range(0x90, 0xC0): ()},
    "tail to 8f": {range(0x80, 0x90): ()},
}
MAY_BE_EMPTY = {"space", "integer digits", "fraction", "decimals", "digits"}
NESTING = {"items", "after item", "members", "after member", "member"}
TABLE = {
    symbol: {byte: after for some, after in rules.items() for byte in some}
    for symbol, rules in RULES.items()
}
ANYTHING: State = ("value", "space")
KINDS = {str: "string", int: "whole", float: "number", bool: "truth"}


def step(state: State, byte: int, depth: int = 16) -> State | None:
    """What is to come after one more byte; ``None`` where it cannot stand.

    Args:
        state: what is to come now.
        byte: that comes.
        depth: so many brackets may be open at once.

    >>> step(ANYTHING, ord("["))
    ('items', 'space')
    >>> step(ANYTHING, ord("]")) is None
    True
    """
    for i, symbol in enumerate(state):
        if symbol == byte:
            return state[i + 1 :]
        after = TABLE[symbol].get(byte) if isinstance(symbol, str) else None
        if after is not None:
            state = after + state[i + 1 :]
            opened = byte in b"[{" and sum(s in NESTING for s in state) > depth
            return None if opened else state
        if symbol not in MAY_BE_EMPTY:
            return None
    return None


def read(text: bytes, state: State = ANYTHING, depth: int = 16) -> State | None:
    """What is to come after a text; ``None`` where it cannot stand.

    >>> read(b'{"a": [1, 2')
    ('integer digits', 'after item', 'after member', 'space')
    """
    for byte in text:
        state = step(state, byte, depth)
        if state is None:
            return None
    return state


def _costs() -> dict[str, int]:
    """The fewest bytes of each symbol, by relaxing until nothing gets cheaper."""
    cost = {s: 0 if s in MAY_BE_EMPTY else 1 << 20 for s in RULES}
    for _ in RULES:
        for symbol in RULES.keys() - MAY_BE_EMPTY:
            ways = RULES[symbol].values()
            cost[symbol] = min(1 + sum(cost.get(s, 1) for s in way) for way in ways)
    return cost


COST = _costs()


def distance(state: State) -> int:
    """The fewest bytes that complete a text; 0 is complete.

    >>> distance(read(b'{"a": [1, 2')), distance(read(b"[0]"))
    (2, 0)
    """
    return sum(COST.get(symbol, 1) for symbol in state)


def accepts(text: bytes, state: State = ANYTHING, depth: int = 16) -> bool:
    """Whether a text is complete JSON.

    >>> accepts(b'{"a": 1.5e3}'), accepts(b"{'a': 1}"), accepts(b"NaN")
    (True, False, False)
    """
    end = read(text, state, depth)
    return end is not None and distance(end) == 0


def schema(shape: Any) -> State:
    """The state in which an object of a fixed shape is to come, as json.dumps writes.

    Args:
        shape: ``str``, ``int``, ``float``, ``bool``; ``None`` for anything; or a dict
            of them by name, in the order in which they are to come.

    Raises:
        ValueError: another type, or a name that is no string.

    >>> pet = schema({"name": str, "age": int})
    >>> accepts(b'{"name": "Bo", "age": 4}', pet), accepts(b'{"age": 4}', pet)
    (True, False)
    """
    if shape is None or (isinstance(shape, type) and shape in KINDS):
        return (KINDS.get(shape, "value"),)
    remedy = "give str, int, float, bool, None or a dict of them by name"
    require(isinstance(shape, dict), "shape", shape, "a type or a dict", remedy)
    state: State = (ord("{"),)
    for i, (name, kind) in enumerate(shape.items()):
        require(isinstance(name, str), "a name", name, "a string", "put it in quotes")
        key = (", " if i else "") + json.dumps(name, ensure_ascii=False) + ": "
        state += (*key.encode(), *schema(kind))
    return (*state, ord("}"))
