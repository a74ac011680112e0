"""From one long stream of tokens to batches, as a pure function of the step.

``windows[step]`` always gives the same rows, whatever was asked before. A run that
resumes at step 1,000 therefore sees what it would have seen, two processes that train
together need not talk about data, and no position has to be saved but the step itself.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from minillm.errors import is_count, require


class Batch(NamedTuple):
    """Rows of tokens, and which of them are targets: seen and scored, not only seen."""

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows of T tokens cut from a stream, in a new random order every epoch.

    Neighbouring rows share one token, the last of one being the first of the next, so
    that a row's T - 1 predictions and those of all others cover the stream once an
    epoch. The cuts shift at random between epochs.

    Args:
        stream: (N,) token ids, documents separated by an end-of-text token.
        T: tokens in a row.
        B: rows in a batch.
        seed: of the order and the cuts.

    Raises:
        ValueError: sizes that are no counts, a negative seed, a stream that is no
            vector of ids or shorter than one row.

    >>> windows = Windows(torch.arange(100), T=5, B=2, seed=0)
    >>> windows[3].tokens.shape, windows[3].tokens.equal(windows[3].tokens)
    (torch.Size([2, 5]), True)
    """

    stream: Integer[Tensor, " N"]
    T: int
    B: int
    seed: int = 0

    def __post_init__(self) -> None:
        stream, T, B, seed = self.stream, self.T, self.B, self.seed
        flat = isinstance(stream, Integer[Tensor, " N"])
        require(flat, "stream", stream, "a vector of ids", "concatenate the documents")
        require_sizes(T, B, seed)
        N, fits = len(stream), f"at least T = {T} tokens long"
        require(T <= N, "stream", N, fits, "give more text or a smaller context")

    @property
    def rows_per_epoch(self) -> int:
        """How many rows one pass has; the ends that it misses change with the epoch."""
        return max((len(self.stream) - 1) // (self.T - 1) - 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what ``windows[step]`` is; checkpoints keep it."""
        return hash_of((self.T, self.B, self.seed), self.stream)

    def __getitem__(self, step: int) -> Batch:
        rows = range(step * self.B, (step + 1) * self.B)
        tokens = torch.stack([self._row(i) for i in rows])
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def _row(self, i: int) -> Int[Tensor, " T"]:
        rows, stride = self.rows_per_epoch, self.T - 1
        epoch, place = divmod(i, rows)
        slack = len(self.stream) - 1 - rows * stride
        start = starts(rows, stride, slack, self.seed, epoch)[place]
        return self.stream[start : start + self.T].long()


@lru_cache(maxsize=8)
def starts(rows: int, stride: int, slack: int, seed: int, epoch: int) -> np.ndarray:
    """Where the rows of one epoch begin, in a random order.

    Args:
        rows: how many there are.
        stride: from one to the next in the text.
        slack: how far all of them may shift together.
        seed, epoch: what the order is a function of.

    >>> starts(rows=4, stride=10, slack=0, seed=0, epoch=1)
    array([30,  0, 20, 10])
    """
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(rows) * stride + rng.integers(slack + 1)


def require_sizes(T: int, B: int, seed: int) -> None:
    """Require what all batches have in common: T of 2 or more, B rows, a seed.

    >>> require_sizes(T=1, B=8, seed=0)
    Traceback (most recent call last):
    ValueError: T must be at least 2, got 1; give an int of 2 or more
    """
    require(is_count(T) and T > 1, "T", T, "at least 2", "give an int of 2 or more")
    require(is_count(B), "B", B, "at least 1", "give a positive int")
    require(is_count(seed + 1), "seed", seed, "an int of at least 0", "try 0")


def hash_of(settings: tuple, *ids: Integer[Tensor, " N"]) -> str:
    """A hash of settings and of ids, however these are stored.

    >>> hash_of((1,), torch.tensor([7])) == hash_of((1,), torch.tensor([7]).short())
    True
    """
    digest = hashlib.sha256("".join(f"{setting} " for setting in settings).encode())
    for vector in ids:
        digest.update(vector.long().numpy().tobytes())
    return digest.hexdigest()[:16]
