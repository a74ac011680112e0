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
from jaxtyping import Bool, Int
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

    stream: Int[Tensor, " N"]
    T: int
    B: int
    seed: int = 0

    def __post_init__(self) -> None:
        flat = isinstance(self.stream, Tensor) and self.stream.dim() == 1
        flat = flat and not self.stream.is_floating_point()
        shown = tuple(self.stream.shape) if isinstance(self.stream, Tensor) else None
        require(flat, "stream", shown, "a vector of ids", "concatenate the documents")
        N = len(self.stream)
        remedy = "give an int of at least 2"
        require(is_count(self.T) and self.T > 1, "T", self.T, "at least 2", remedy)
        require(is_count(self.B), "B", self.B, "at least 1", "give a positive int")
        seeds = self.seed == 0 or is_count(self.seed)
        require(seeds, "seed", self.seed, "an int of at least 0", "choose another")
        fits = f"at least T = {self.T} tokens long"
        require(self.T <= N, "stream", N, fits, "give more text or a smaller context")

    @property
    def rows_per_epoch(self) -> int:
        """How many rows one pass has; the ends that it misses change with the epoch."""
        return max((len(self.stream) - 1) // (self.T - 1) - 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what ``windows[step]`` is; checkpoints keep it."""
        hashed = hashlib.sha256(f"{self.T} {self.B} {self.seed} ".encode())
        for part in self.stream.split(1 << 20):  # as int64, whatever it is stored as
            hashed.update(part.long().numpy().tobytes())
        return hashed.hexdigest()[:16]

    def __getitem__(self, step: int) -> Batch:
        require(step >= 0, "step", step, "at least 0", "count steps from 0")
        rows = range(step * self.B, (step + 1) * self.B)
        tokens = torch.stack([self._row(i) for i in rows])
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def _row(self, i: int) -> Int[Tensor, " T"]:
        epoch, place = divmod(i, self.rows_per_epoch)
        rows, stride = self.rows_per_epoch, self.T - 1
        slack = len(self.stream) - 1 - rows * stride  # how far the cuts may shift
        order, shift = _epoch_order(rows, slack, self.seed, epoch)
        start = order[place] * stride + shift
        return self.stream[start : start + self.T].long()


@lru_cache(maxsize=8)
def _epoch_order(
    rows: int, slack: int, seed: int, epoch: int
) -> tuple[np.ndarray, int]:
    """Order of the rows and shift of the cuts in one epoch."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(rows), int(rng.integers(slack + 1))
