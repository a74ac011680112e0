"""Rows that begin where a document begins, for text whose entropy is known.

``Windows`` cuts rows anywhere, so a row may open in the middle of a sentence whose
subject nobody can guess any more: what the document itself makes certain has become a
surprise. Half-documents have another, higher entropy, and a model that is trained and
scored on them cannot reach the floor of whole ones. Here every row is

    <end of text> document <end of text> document <end of text> document ...

cut off at T tokens. What the cut loses is gone: the next row opens with the next
document. Beginning again with the one that was cut would be worse than wasteful: long
documents are cut more often, so rows would open with long ones too often, and a model
can learn that. Filling rows only with documents that fit whole leaks, too: little room
left would mean that a short one follows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from minillm.data.batches import Batch
from minillm.errors import is_count, require


def pack(documents: Sequence[Sequence[int]], eot: int, T: int) -> Int[Tensor, "R T"]:
    """Fill rows with documents, one after the other.

    Args:
        documents: token ids of each, in an order that says nothing about them.
        eot: the end-of-text token, which stands before, between and behind.
        T: tokens in a row.

    Raises:
        ValueError: not even one row can be filled, or T is no count above 1.

    >>> pack([[1, 2], [3, 4], [5, 6, 7], [8, 9, 9, 9, 9]], eot=0, T=5)
    tensor([[0, 1, 2, 0, 3],
            [0, 5, 6, 7, 0],
            [0, 8, 9, 9, 9]])
    """
    require(is_count(T) and T > 1, "T", T, "at least 2", "give an int of 2 or more")
    rows, row = [], [eot]
    for document in documents:
        row += [*document, eot]
        if len(row) >= T:
            rows.append(row[:T])
            row = [eot]
    need, remedy = f"enough for a row of {T} tokens", "give more or a smaller T"
    require(len(rows) > 0, "documents", len(documents), need, remedy)
    return torch.tensor(rows)


@dataclass(frozen=True, eq=False)
class Rows:
    """Batches of given rows, in a new random order every epoch.

    Args:
        tokens: (R, T) ids, for instance from ``pack``; all are targets.
        B: rows in a batch.
        seed: of the order.

    Raises:
        ValueError: no matrix of ids at least two wide, a size that is no count, a
            negative seed.

    >>> rows = Rows(torch.arange(6).view(3, 2), B=3)
    >>> sorted(rows[5].tokens[:, 0].tolist()), rows[5].tokens.equal(rows[5].tokens)
    ([0, 2, 4], True)
    """

    tokens: Integer[Tensor, "R T"]
    B: int
    seed: int = 0

    def __post_init__(self) -> None:
        tokens, B, seed = self.tokens, self.B, self.seed
        matrix = isinstance(tokens, Integer[Tensor, "R T"])
        fine, need = matrix and tokens.numel() > 0, "a matrix of ids"
        require(fine, "tokens", tokens, need, "make it with pack")
        T = tokens.shape[1]
        require(T > 1, "T", T, "at least 2", "a row of one token predicts nothing")
        require(is_count(B), "B", B, "at least 1", "give a positive int")
        require(is_count(seed + 1), "seed", seed, "an int of at least 0", "try 0")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what ``rows[step]`` is; checkpoints keep it."""
        settings = f"{self.B} {self.seed} {tuple(self.tokens.shape)} ".encode()
        ids = self.tokens.long().contiguous().numpy().tobytes()
        return hashlib.sha256(settings + ids).hexdigest()[:16]

    def __getitem__(self, step: int) -> Batch:
        places = range(step * self.B, (step + 1) * self.B)
        R = len(self.tokens)
        chosen = [_order(R, self.seed, i // R)[i % R] for i in places]
        tokens = self.tokens[chosen].long()
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


@lru_cache(maxsize=8)
def _order(R: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(R)
