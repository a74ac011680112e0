r"""Other ways to make a task of plain text: hide some of it, and ask for it back.

A causal model predicts every token from those before it. Three older objectives change
the text first and see both sides of what they changed:

- masked tokens (BERT): 15 % of the positions are asked for, most of them hidden;
- span corruption (T5): whole spans shrink to one sentinel each, and a decoder writes
  them out;
- replaced tokens (ELECTRA): a small generator fills the gaps, and the model says of
  *every* position whether it was replaced.

They differ most in how many positions teach something in one pass:

.. math:: \underbrace{T - 1}_{causal}, \qquad \underbrace{0.15\, T}_{masked}, \qquad
          \underbrace{0.15\, T + spans + 1}_{spans}, \qquad \underbrace{T}_{replaced}
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require, require_mask
from minillm.training.losses import IGNORE


def mask_tokens(
    tokens: Int[Tensor, "B T"],
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    maskable: Bool[Tensor, "B T"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Inputs and targets of masked language modelling.

    A position is chosen with probability ``rate``. Of the chosen, 80 % become
    ``mask_id``, 10 % any token of the vocabulary, and 10 % stay: the model meets no
    ``mask_id`` when it is used, so it must not learn that other tokens are always true.

    Args:
        tokens: the text.
        mask_id: the token that stands for "hidden".
        vocab_size: random tokens are drawn from ``0..vocab_size - 1``.
        rate: the share of positions that are asked for.
        maskable: True where a token may be chosen (no padding); ``None`` is everywhere.
        generator: where the draws come from.

    Returns:
        The changed text, and its targets: the true token where chosen, else ``IGNORE``.

    Raises:
        ValueError: a rate outside 0..1.

    Source: Devlin et al. 2019, section 3.1. Differs from the paper: each position is
    drawn on its own, so a row has 15 % of chosen positions only in the mean.

    >>> inputs, targets = mask_tokens(torch.arange(8)[None], 9, 10, rate=1.0)
    >>> bool((targets == torch.arange(8)).all())
    True
    """
    require(0 <= rate <= 1, "rate", rate, "in 0..1", "0.15 is BERT's")
    chosen = torch.rand(tokens.shape, generator=generator) < rate
    if maskable is not None:
        chosen &= maskable
    fate = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(vocab_size, tokens.shape, generator=generator)
    return hide_tokens(tokens, chosen, fate, others, mask_id)


def hide_tokens(
    tokens: Int[Tensor, "B T"],
    chosen: Bool[Tensor, "B T"],
    fate: Float[Tensor, "B T"],
    others: Int[Tensor, "B T"],
    mask_id: int,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Inputs and targets of masked language modelling, when the draws are made.

    Args:
        tokens: the text.
        chosen: True at the positions that are asked for.
        fate: of the chosen, those below 0.8 are hidden, those from 0.8 and below 0.9
            become another token, and the rest stay.
        others: the tokens to become.
        mask_id: the token that stands for "hidden".

    >>> tokens, draws = torch.tensor([[5, 6, 7]]), torch.tensor([[0.1, 0.85, 0.95]])
    >>> hide_tokens(tokens, tokens > 5, draws, tokens - 5, 9)
    (tensor([[5, 1, 7]]), tensor([[-100,    6,    7]]))
    """
    inputs = tokens.masked_fill(chosen & (fate < 0.8), mask_id)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, inputs)
    return inputs, tokens.masked_fill(~chosen, IGNORE)


def span_corruption(
    tokens: Int[Tensor, " T"],
    spans: Sequence[tuple[int, int]],
    sentinels: Sequence[int],
) -> tuple[Int[Tensor, " N"], Int[Tensor, " M"]]:
    """Inputs and targets of T5's objective, for spans that were drawn before.

    Each span shrinks to a sentinel of its own in the inputs. The targets are the
    sentinels, each with the tokens that it stands for, and one more sentinel to say
    that nothing follows. What both share is only the sentinels, so that, put together,
    they are the text, and nothing is predicted that can be seen.

    Args:
        tokens: one text.
        spans: ``(start, end)`` pairs without the end, in order, not overlapping.
        sentinels: at least one more token id than there are spans, used in order.

    Raises:
        ValueError: spans that are empty, overlap, leave the text or are out of order;
            too few sentinels.

    Source: Raffel et al. 2020, section 3.1.4 and figure 2.

    >>> span_corruption(torch.arange(6), [(1, 3), (4, 5)], [90, 91, 92])
    (tensor([ 0, 90,  3, 91,  5]), tensor([90,  1,  2, 91,  4, 92]))
    """
    need = f"at least {len(spans) + 1} ids"
    enough = len(sentinels) > len(spans)
    require(enough, "sentinels", list(sentinels), need, "the last ends the targets")
    edges = [0, *(edge for span in spans for edge in span), len(tokens)]
    ordered = all(a <= b for a, b in pairwise(edges))
    ordered = ordered and all(start < end for start, end in spans)
    wanted = "non-empty, in order and inside the text"
    require(ordered, "spans", list(spans), wanted, "sort and merge them first")
    marks = tokens.new_tensor(sentinels)[:, None]
    inputs, targets, done = [], [], 0
    for mark, (start, end) in zip(marks, spans, strict=False):
        inputs += [tokens[done:start], mark]
        targets += [mark, tokens[start:end]]
        done = end
    return torch.cat([*inputs, tokens[done:]]), torch.cat([*targets, marks[len(spans)]])


def replaced_token_targets(
    tokens: Int[Tensor, "B T"], corrupted: Int[Tensor, "B T"]
) -> Bool[Tensor, "B T"]:
    """Which positions of a corrupted text were replaced: ELECTRA's question.

    A generator that happens to restore the true token has replaced nothing, so what
    counts is the difference between the texts, not where the gaps were.

    Args:
        tokens: the text.
        corrupted: the text with its gaps filled by a generator.

    Raises:
        ValueError: two shapes.

    Source: Clark et al. 2020, section 2.

    >>> replaced_token_targets(torch.tensor([[5, 6, 7]]), torch.tensor([[5, 9, 7]]))
    tensor([[False,  True, False]])
    """
    need = f"of shape {tuple(tokens.shape)}"
    same = tokens.shape == corrupted.shape
    require(same, "corrupted", corrupted, need, "fill the gaps of the same text")
    return tokens != corrupted


def replaced_token_loss(
    scores: Float[Tensor, "B T"],
    tokens: Int[Tensor, "B T"],
    corrupted: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Mean surprise in nats over all real positions: was this token replaced?

    The question is asked of every token, hidden or not; that, more than the question
    itself, is what the method gains by (Clark et al. 2020, section 3.4).

    Args:
        scores: logits of "replaced". The answer is about the token that the position
            sees, so nothing is shifted.
        tokens: the text.
        corrupted: the text with its gaps filled by a generator.
        mask: True at real tokens, False at padding.

    Raises:
        ValueError: no real token at all, or shapes that do not belong together.

    >>> tokens = torch.tensor([[5, 6]])
    >>> replaced_token_loss(torch.zeros(1, 2), tokens, tokens, tokens > 0)   # ln 2
    tensor(0.6931)
    """
    require_mask(mask, tuple(tokens.shape))
    remedy = "leave batches out that are padding only"
    require(bool(mask.any()), "mask", mask, "True somewhere", remedy)
    targets = replaced_token_targets(tokens, corrupted).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores[mask], targets[mask])
