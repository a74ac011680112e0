"""Thumbs as batches: single responses with a label, for KTO.

KTO's reference point wants responses under prompts of others. Each row gets such a
partner once and for all, so that the reference can score both before training:

    row        prompt i  response i    desirable or not
    partner    prompt i  response j    j: the next row that answers another prompt

The next row alone is not enough: rows made from pairs stand in twos under one prompt,
and a partner that answers the same prompt is not mismatched at all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from minillm.alignment.logprobs import sequence_logprobs
from minillm.alignment.preference_data import PairBatch, PreferencePairs, Row
from minillm.alignment.scored import ScoredFeedback
from minillm.data.chat import Encoded
from minillm.data.examples import Examples, truncate
from minillm.errors import require
from minillm.model import GPT


def from_pairs(rows: Iterable[Row]) -> tuple[list[Encoded], list[bool]]:
    """Each pair as two thumbs: the chosen response up, the rejected one down.

    >>> a, b = Encoded([5, 6], [False, True]), Encoded([5, 7], [False, True])
    >>> from_pairs([(a, b)])[1]
    [True, False]
    """
    flat = [row for pair in rows for row in pair]
    return flat, [True, False] * (len(flat) // 2)


def mismatch(rows: Sequence[Encoded], T: int) -> list[Encoded]:
    """For each row its prompt with the response to the next row's other prompt.

    Args:
        rows: prompts with one response each, the response being the target.
        T: longer ones are cut.

    Raises:
        ValueError: all rows have one prompt.

    >>> rows = [Encoded([5, 6], [False, True]), Encoded([7, 8, 9], [False, True, True])]
    >>> mismatch(rows, T=8)[0]
    Encoded(ids=[5, 8, 9], mask=[False, True, True])
    """
    prompts = [tuple(ids[: mask.index(True)]) for ids, mask in rows]
    remedy = "KTO needs responses to other prompts"
    require(len({*prompts}) > 1, "prompts", len({*prompts}), "at least 2", remedy)
    partners, n = [], len(rows)
    for i, prompt in enumerate(prompts):
        others = (j % n for j in range(i + 1, i + n))
        j = next(j for j in others if prompts[j] != prompt)
        ids, mask = (part[len(prompts[j]) :] for part in rows[j])
        seen = [False] * len(prompt)
        partners.append(truncate(Encoded([*prompt, *ids], seen + mask), T))
    return partners


@dataclass(frozen=True)
class FeedbackBatch:
    """Rows with their partners behind them, and the labels of the rows."""

    pairs: PairBatch
    desirable: Bool[Tensor, " B"]

    def score(self, model: GPT) -> ScoredFeedback:
        """Rows with a gradient, partners without: they are a point of reference."""
        remedy = "give ref to prefer: KTO has no use without one"
        require(self.pairs.ref is not None, "ref", None, "a model", remedy)
        (tokens, others), (mask, masks) = (
            part.chunk(2) for part in (self.pairs.tokens, self.pairs.mask)
        )
        policy = sequence_logprobs(model(tokens), tokens, mask)
        with torch.no_grad():
            mismatched = sequence_logprobs(model(others), others, masks)
        ref, ref_mismatched = self.pairs.ref.chunk(2)
        return ScoredFeedback(policy, ref, self.desirable, mismatched, ref_mismatched)


@dataclass(frozen=True, eq=False)
class Feedback:
    """``feedback[step] -> FeedbackBatch``, a pure function of the step.

    Args:
        rows: prompts with one response each.
        desirable: whether each was liked.
        T, B, pad, seed, ref: of ``PreferencePairs``; B counts rows without partners.

    Raises:
        ValueError: what ``Examples`` refuses, too few labels, one prompt only.

    >>> rows = [Encoded([5, 6], [False, True]), Encoded([7, 8, 9], [False, True, True])]
    >>> Feedback(rows, [True, False], T=8, B=2, pad=0)[0].pairs.tokens.shape
    torch.Size([4, 3])
    """

    rows: Sequence[Encoded]
    desirable: Sequence[bool]
    T: int
    B: int
    pad: int
    seed: int = 0
    ref: Tensor | None = None

    def __post_init__(self) -> None:
        n, given = len(self.rows), len(self.desirable)
        require(n == given, "desirable", given, f"{n} labels", "give one for each row")
        Examples(self.rows, self.T, self.B, self.pad, self.seed)  # its doors are ours
        _ = self.pairs

    @cached_property
    def pairs(self) -> PreferencePairs:
        """Rows with partners, in the shape of pairs."""
        rows = [*zip(self.rows, mismatch(self.rows, self.T), strict=True)]
        return PreferencePairs(rows, self.T, self.B, self.pad, self.seed, self.ref)

    def __getitem__(self, step: int) -> FeedbackBatch:
        labels = [bool(self.desirable[i]) for i in self.pairs.indices(step)]
        return FeedbackBatch(self.pairs[step], torch.tensor(labels))

    def with_reference(self, model: GPT) -> "Feedback":
        """The same rows with the log-probs of a reference, scored once, now."""
        return replace(self, ref=self.pairs.with_reference(model).ref)
