"""From nats per choice to nats per token: what the best model's loss is at each token.

A model pays token by token, and a choice may span several: the name " Mira Tolan" is
two tokens, the first shared by every Mira. Given the text so far, the chance of the
next token is the weight of the alternatives that go on with it, over the weight of
those that are still possible:

    nats(token t of a choice) = ln W(tokens before t) - ln W(tokens up to t)

where W(tokens) sums the probabilities of the menu's texts whose tokens begin so: a trie
with a weight at each node. The terms telescope to -ln p of what was chosen, so the
document's nats are spread over its tokens exactly, none lost.

**Condition.** The pending choice must be all that the next token depends on. So tokens
must end where segments end, and an alternative must be cut into the same tokens
whatever stands around it. ``ExactTokenNats`` checks each seam of the document, and for
every alternative that it would be cut the same in the place of the chosen one. (What an
alternative would have been followed by instead is checked in the documents that chose
it.) Where the condition fails it refuses; ``attributed_nats`` needs none, and only
promises that the sum is right.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from minillm.errors import require
from minillm.world.menus import Menu
from minillm.world.recorder import PREDICTABLE, Document, Segment

Encode = Callable[[str], Sequence[int]]


class TokenNats(NamedTuple):
    """A token, the kind of text it belongs to, and its nats."""

    token: int
    kind: str
    nats: float


class ExactTokenNats:
    """Nats of each token of a document, exact where the condition above holds.

    A model's loss on a token is compared with ``nats`` if ``kind`` is irreducible, and
    with 0 otherwise if it ought to know the world's facts. The end-of-text token after
    a document is predictable: its program knows when it is done.

    Args:
        encode: text to ids, without special tokens.

    Raises:
        ValueError: (when called) a seam of the document that tokens do not respect.

    >>> from minillm.world.menus import Menu
    >>> from minillm.world.interpreters import sample
    >>> pets = Menu(("cat", "cow", "dog"), (1, 1, 2))
    >>> document = sample(lambda r: r.choose(pets), seed="c")
    >>> exact = ExactTokenNats(encode=lambda text: list(text.encode()))
    >>> document.text, [round(token.nats, 3) for token in exact(document)]
    ('cow', [0.693, 0.693, 0.0])
    """

    def __init__(self, encode: Encode):
        self.encode = encode
        self._tries: dict[Menu, dict[tuple[int, ...], float]] = {}
        self._ids: dict[str, tuple[int, ...]] = {}
        self._checked: set[tuple[Menu, str, str]] = set()

    def __call__(self, document: Document) -> list[TokenNats]:
        text, tokens = document.text, []
        for segment in document.segments:
            ids = self._tokens(text[segment.start : segment.end])
            nats = self._spread(segment, ids)
            tokens += map(TokenNats, ids, [segment.kind] * len(ids), nats)
            self._check_alternatives(segment, text)
        whole = [token.token for token in tokens] == list(self.encode(text))
        remedy = "end segments where the tokenizer cuts, or use attributed_nats"
        require(whole, "document", text, "cut by tokens where segments end", remedy)
        return tokens

    def _tokens(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self.encode(text))
        return self._ids[text]

    def _spread(self, segment: Segment, ids: tuple[int, ...]) -> list[float]:
        """The nats of one choice over its tokens: differences along the trie."""
        if segment.nats == 0:
            return [0.0] * len(ids)
        trie = self._trie(segment.menu)
        steps = [trie[ids[:n]] for n in range(len(ids) + 1)]
        return [math.log(before / after) for before, after in pairwise(steps)]

    def _trie(self, menu: Menu) -> dict[tuple[int, ...], float]:
        """The probability of each beginning of a token sequence."""
        if menu not in self._tries:
            weight: dict[tuple[int, ...], float] = defaultdict(float)
            for text, p in zip(menu.texts, menu.probabilities, strict=True):
                ids = self._tokens(text)
                for n in range(len(ids) + 1):
                    weight[ids[:n]] += p
            self._tries[menu] = weight
        return self._tries[menu]

    def _check_alternatives(self, segment: Segment, text: str) -> None:
        """Refuse unless every text of the menu keeps its tokens in this place."""
        before = text[max(0, segment.start - 1) : segment.start]
        after = text[segment.end : segment.end + 2]
        place = segment.menu, before, after
        if segment.menu is None or place in self._checked:
            return
        around = self._tokens(before), self._tokens(after)
        for option in segment.menu.texts:
            apart = around[0] + self._tokens(option) + around[1]
            same = apart == tuple(self.encode(before + option + after))
            need = f"cut off by tokens between {before!r} and {after!r}"
            require(same, "alternative", option, need, "use attributed_nats")
        self._checked.add(place)


def attributed_nats(
    document: Document, token_bytes: Sequence[bytes]
) -> list[tuple[str, float]]:
    """Kind and nats of each token, a choice's nats given to the token it begins in.

    Only sums over whole documents mean something; no condition on the tokens.

    Args:
        token_bytes: what each token of the document spells.

    Returns:
        (kind, nats) for each token: the kind of the costliest choice that begins in
        it; predictable, if none does.

    Raises:
        ValueError: the tokens do not spell the document.

    >>> from minillm.world.menus import Menu
    >>> from minillm.world.interpreters import sample
    >>> pets = Menu(("cat", "cow", "dog"), (1, 1, 2))
    >>> document = sample(lambda r: r.choose(pets), seed="c")
    >>> [(k, round(n, 3)) for k, n in attributed_nats(document, [b"c", b"ow"])]
    [('irreducible', 1.386), ('predictable', 0.0)]
    """
    spelled = b"".join(token_bytes) == document.text.encode()
    need = "the bytes of the document"
    require(spelled, "token_bytes", token_bytes, need, "encode its text")
    byte_at = [0, *accumulate(len(c.encode()) for c in document.text)]
    ends = list(accumulate(map(len, token_bytes)))
    accounts, t = [(PREDICTABLE, 0.0, 0.0)] * len(ends), 0
    for segment in document.segments:
        while segment.nats and ends[t] <= byte_at[segment.start]:
            t += 1
        if segment.nats:
            kind, most, total = accounts[t]
            kind = segment.kind if segment.nats > most else kind
            accounts[t] = kind, max(most, segment.nats), total + segment.nats
    return [(kind, total) for kind, _, total in accounts]
