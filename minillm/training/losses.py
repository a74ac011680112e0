r"""Next-token prediction: one pass over a text scores every prefix of it.

.. math:: L = -\frac{1}{N} \sum_{t} \ln p(x_{t+1} \mid x_{\le t})

summed over the N positions whose next token is a target. The labels are the text
itself, moved one place to the left.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require, require_mask

IGNORE = -100  # cross_entropy skips this label


def shift_targets(
    tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None
) -> Int[Tensor, "B T"]:
    """The token that each position should predict; ``IGNORE`` where none is scored.

    We move the targets and not the logits: a slice of the logits would be copied, and
    they are the largest tensor of a training step.

    >>> import torch
    >>> shift_targets(torch.tensor([[5, 6, 7]]), torch.tensor([[True, False, True]]))
    tensor([[-100,    7, -100]])
    """
    targets = tokens.roll(-1, dims=1)  # a new tensor, safe to write to
    if mask is not None:
        targets[~mask.roll(-1, dims=1)] = IGNORE
    targets[:, -1] = IGNORE
    return targets


def count_targets(tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None) -> int:
    """How many tokens a batch scores; the first of a row has no prediction.

    >>> import torch
    >>> count_targets(torch.tensor([[5, 6, 7]]), None)
    2
    """
    return tokens[:, 1:].numel() if mask is None else int(mask[:, 1:].sum())


def next_token_loss(
    logits: Float[Tensor, "B T V"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Mean surprise in nats over the tokens that are targets.

    Args:
        logits: position t scores the token at t + 1; all T positions.
        tokens: the same sequences that the logits were computed from, unshifted.
        mask: True at tokens that are targets; ``None`` makes all of them targets.

    Raises:
        ValueError: shapes that do not belong together, a mask of numbers, or no target
            at all (a mean over nothing would be NaN and spread to every weight).

    Source: Bengio et al. 2003, section 2.

    >>> import torch
    >>> next_token_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))   # ln 4
    tensor(1.3863)
    """
    B_T, shape = tuple(tokens.shape), tuple(logits.shape)
    same = "pass all T positions; the shift happens here"
    require(shape[:-1] == B_T, "logits", shape, f"of shape (B, T, V) for {B_T}", same)
    require_mask(mask, B_T)
    remedy = "give each batch at least one row with a target after its first token"
    n = count_targets(tokens, mask)
    require(n > 0, "targets", n, "at least 1", remedy)
    targets = shift_targets(tokens, mask)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
