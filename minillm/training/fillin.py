r"""Training by filling gaps: what masked, span and replaced-token models minimise.

``objectives`` makes inputs and targets of a text. Here they become a loss. All but one
of the objectives are the same sum,

.. math:: L = -\frac{1}{|S|} \sum_{t \in S} \ln p(target_t \mid inputs)

and differ in S, the positions that are scored, and in what the model sees: everything
before t (causal), or everything but the gaps (masked). Only the positions of S need the
head, the largest product of a small model, so the others do not get it.

Replaced-token detection asks another question: see ``electra``.

Sources: Devlin et al. 2019, section 3.1; Raffel et al. 2020, section 3.1.4.
"""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require
from minillm.model import GPT, GPTConfig, flops_per_token
from minillm.model.layers import at_least_float32
from minillm.training.losses import IGNORE
from minillm.training.objectives import span_corruption


def scored_loss(
    model: GPT, inputs: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean surprise, in nats, over the positions that have a target.

    Args:
        model: causal or not.
        inputs: what it sees.
        targets: what is asked for *at* each position, or ``IGNORE``. Shift them before
            for next-token prediction: ``shift_targets(tokens)``.

    Raises:
        ValueError: no target at all.

    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> tokens = torch.tensor([[5, 6, 7]])
    >>> 3.5 < scored_loss(model, tokens, tokens.roll(-1)) < 5    # about ln 64 = 4.2
    tensor(True)
    """
    scored = targets != IGNORE
    n, remedy = int(scored.sum()), "mask more, or take more text"
    require(n > 0, "targets", n, "at least 1", remedy)
    logits = model.lm_head(model.hidden(inputs)[scored])
    return F.cross_entropy(at_least_float32(logits), targets[scored])


def draw_spans(T: int, rate: float, length: int, dice: Random) -> list[tuple[int, int]]:
    """Spans that cover ``rate`` of T positions, each about ``length`` long.

    The number of spans and of hidden tokens is fixed, so that all rows of a batch are
    equally long; where the cuts are is drawn.

    Args:
        T: positions.
        rate: the share that is hidden.
        length: mean length of a span.
        dice: where the draws come from.

    Raises:
        ValueError: more spans than fit.

    Source: Raffel et al. 2020, section 3.1.4 (15 % of the tokens, mean length 3).

    >>> draw_spans(T=20, rate=0.3, length=3, dice=Random(0))
    [(7, 11), (17, 19)]
    """
    hidden = max(round(rate * T), 1)
    n = max(round(hidden / length), 1)
    fits = 0 < n <= T - hidden
    require(fits, "spans", n, f"at most {T - hidden}", "hide less, or in longer spans")
    # Cut what is hidden into n parts, and what is seen into n parts and a rest.
    long, gaps = _parts(hidden, n, dice), _parts(T - hidden + 1, n + 1, dice)
    spans, at = [], 0
    for gap, size in zip(gaps, long, strict=False):
        spans.append((at + gap, at + gap + size))
        at = spans[-1][1]
    return spans


def _parts(total: int, n: int, dice: Random) -> list[int]:
    """``total`` as a sum of n positive numbers, all sums equally likely."""
    cuts = [0, *sorted(dice.sample(range(1, total), n - 1)), total]
    return [b - a for a, b in pairwise(cuts)]


def span_rows(
    tokens: Int[Tensor, "B T"], sentinels: Sequence[int], dice: Random, rate=0.15
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Span corruption for a decoder: corrupted text, then what is missing in it.

    A T5 reads the first with its encoder and writes the second with its decoder. Here
    one causal model does both, and only what it writes is scored; so the data and the
    mask make the objective, and the loss is the one of next-token prediction.

    Returns:
        rows, and a mask that is True at the targets.

    >>> rows, mask = span_rows(torch.arange(10)[None], [90, 91, 92], Random(1), 0.2)
    >>> rows
    tensor([[ 0,  1,  2, 90,  5,  6,  7,  8,  9, 90,  3,  4, 91]])
    >>> mask.int()
    tensor([[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    """
    rows, masks = [], []
    for row in tokens:
        spans = draw_spans(len(row), rate, 3, dice)
        inputs, targets = span_corruption(row, spans, sentinels)
        rows.append(torch.cat([inputs, targets]))
        masks.append(torch.arange(len(rows[-1])) >= len(inputs))
    return torch.stack(rows), torch.stack(masks)


def row_flops(config: GPTConfig, T: int, scored: float, head: int = 0) -> float:
    """Operations of training on one row of which ``scored`` positions reach the head.

    Args:
        config: of the model.
        T: positions in the row.
        scored: positions that reach the head.
        head: outputs of the head; 0 is the vocabulary.

    >>> config = GPTConfig(vocab_size=1024, n_embd=64, n_head=4, n_layer=2)
    >>> row_flops(config, T=128, scored=19) < row_flops(config, T=128, scored=127)
    True
    """
    whole = 6 * config.n_embd * config.vocab_size * T
    seen = 6 * config.n_embd * (head or config.vocab_size) * scored
    return flops_per_token(config, T) * T - whole + seen
