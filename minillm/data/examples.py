"""Conversations as batches: one a row, padded on the right; a function of the step.

    tokens   <|im_start|> user ... assistant \\n  Gladly : a cat . <|im_end|>  pad pad
    mask     seen ............................   target ....................  seen ...

A row is an example that begins at position 0, as in generation. Padding stands on the
right: a causal model cannot look at what comes later, so it needs no mask for it, and
the loss leaves it out. ``batches.Windows`` is the same idea for one long stream.

Each batch is as wide as its longest row, not as the context: attention and head are
paid for by the column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.data.batches import Batch, hash_of, require_sizes, starts
from minillm.data.chat import Encoded
from minillm.errors import is_count, require


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of examples, each once an epoch, in a new random order every epoch.

    Args:
        encoded: ids and mask of each example, as ``encode_chat`` makes them.
        T: the longest row that the model takes.
        B: rows in a batch.
        pad: the id that fills rows up; a token of its own, never the end of a turn.
        seed: of the order.

    Raises:
        ValueError: sizes that are no counts, no example, ids and mask of unequal
            lengths, an example that is longer than T or has nothing to learn.

    >>> pair = Encoded([5, 6, 7], [False, True, True]), Encoded([8, 9], [False, True])
    >>> tokens, mask = Examples(pair, T=16, B=2, pad=0)[0]
    >>> tokens
    tensor([[5, 6, 7],
            [8, 9, 0]])
    >>> mask.int()
    tensor([[0, 1, 1],
            [0, 1, 0]], dtype=torch.int32)
    """

    encoded: Sequence[Encoded]
    T: int
    B: int
    pad: int
    seed: int = 0

    def __post_init__(self) -> None:
        require_sizes(self.T, self.B, self.seed)
        need, remedy = "a token id", "pass tokenizer.pad"
        require(is_count(self.pad + 1), "pad", self.pad, need, remedy)
        n, remedy = len(self.encoded), "give at least one"
        require(n > 0, "encoded", n, "at least 1 example", remedy)
        for i, example in enumerate(self.encoded):
            _check(i, Encoded(*example), self.T)

    @property
    def rows_per_epoch(self) -> int:
        """How many rows one pass has: one for each example."""
        return len(self.encoded)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what ``examples[step]`` is; T is only a limit."""
        settings = (self.B, self.pad, self.seed)
        lengths = torch.tensor([len(ids) for ids, _ in self.encoded])
        return hash_of(settings, lengths, *self._ids, *self._masks)

    def __getitem__(self, step: int) -> Batch:
        rows = [self._place(i) for i in range(step * self.B, (step + 1) * self.B)]
        tokens = pad_sequence([self._ids[i] for i in rows], True, self.pad)
        mask = pad_sequence([self._masks[i] for i in rows], True, False)
        return Batch(tokens, mask)

    def _place(self, i: int) -> int:
        """Which example is the i-th row of all epochs."""
        n = len(self.encoded)
        epoch, place = divmod(i, n)
        return starts(n, 1, 0, self.seed, epoch)[place]

    @cached_property
    def _ids(self) -> list[Tensor]:
        return [torch.tensor(ids) for ids, _ in self.encoded]

    @cached_property
    def _masks(self) -> list[Tensor]:
        return [torch.tensor(mask) for _, mask in self.encoded]


def truncate(example: Encoded, T: int) -> Encoded:
    """Cut an example after T tokens; shorter ones stay as they are.

    The end of the turn is lost with the rest, and that is right: put back, it would
    teach to stop in the middle of a sentence. Such a row teaches what to say and never
    when to stop, so keep them few. One that is cut before the answer begins teaches
    nothing, and ``Examples`` refuses it.

    >>> truncate(Encoded([5, 6, 7], [False, True, True]), T=2)
    Encoded(ids=[5, 6], mask=[False, True])
    """
    return Encoded(example.ids[:T], example.mask[:T])


def _check(i: int, example: Encoded, T: int) -> None:
    ids, mask = example
    n, name, remedy = len(ids), f"the mask of encoded[{i}]", "make both by encode_chat"
    require(len(mask) == n, name, mask, f"{n} truth values, one for each id", remedy)
    remedy = "raise T, drop the example, or cut it with truncate(example, T)"
    require(n <= T, f"the length of encoded[{i}]", n, f"at most T = {T}", remedy)
    # Nothing predicts the first token of a row.
    targets, need = sum(mask[1:]), "at least 1 after its first token"
    require(targets > 0, f"targets of encoded[{i}]", targets, need, "drop it")
