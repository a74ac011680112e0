"""Chapter 01: the next-token loss, and nine ways to get it wrong."""

import torch
import torch.nn.functional as F

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees
from minillm.training.losses import next_token_loss


def batches(seed: int) -> dict:
    """Logits, tokens and masks; no two rows have equally many targets."""
    rng = torch.Generator().manual_seed(seed)
    B, T, V = 3, 7, 11
    logits = 2 * torch.randn(B, T, V, generator=rng)
    tokens = torch.randint(V, (B, T), generator=rng)
    at = torch.arange(T)
    right = at < torch.tensor([[7], [3], [5]])
    prompts = right & (at >= torch.tensor([[2], [1], [3]]))
    left = at >= torch.tensor([[4], [0], [2]])
    return {
        "padding on the right": (logits, tokens, right),
        "padding on the left": (logits, tokens, left),
        "prompts that are not targets": (logits, tokens, prompts),
        "a single row": (logits[1:2], tokens[1:2], right[1:2]),
        "no mask": (logits, tokens),
        "extreme logits": (200 * logits, tokens, prompts),
    }


def _surprise(logits, tokens):
    """-ln p of ``tokens[t]`` under ``logits[t]``: the part that no mutant changes."""
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def _mask(tokens, mask):
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask


def no_shift(logits, tokens, mask=None):
    """Each position is asked for the token that it sees, so copying is rewarded. The
    logits at t predict the token at t + 1."""
    return _surprise(logits, tokens)[_mask(tokens, mask)].mean()


def double_shift(logits, tokens, mask=None):
    """The shift happens twice, so each position is asked for the token after the
    next. Shift exactly once."""
    return _surprise(logits[:, :-2], tokens[:, 2:])[_mask(tokens, mask)[:, 2:]].mean()


def backwards(logits, tokens, mask=None):
    """The shift goes the wrong way: each position is asked for the token before it.
    Drop the last of the logits and the first of the tokens."""
    return _surprise(logits[:, 1:], tokens[:, :-1])[_mask(tokens, mask)[:, :-1]].mean()


def mask_of_the_asker(logits, tokens, mask=None):
    """The tokens were shifted and the mask was not. The mask says which tokens are
    targets, so it moves with them: ``mask[:, 1:]``."""
    return _surprise(logits[:, :-1], tokens[:, 1:])[_mask(tokens, mask)[:, :-1]].mean()


def mask_forgotten(logits, tokens, mask=None):
    """Every token counts, the padding and the prompt, too. Keep only positions whose
    next token is True in the mask."""
    return _surprise(logits[:, :-1], tokens[:, 1:]).mean()


def mean_of_row_means(logits, tokens, mask=None):
    """Each row is averaged for itself, so tokens of short rows weigh more. Sum over
    the whole batch, then divide once."""
    m = _mask(tokens, mask)[:, 1:]
    rows = (_surprise(logits[:, :-1], tokens[:, 1:]) * m).sum(1)
    return (rows / m.sum(1).clamp(min=1)).mean()


def divided_by_all(logits, tokens, mask=None):
    """Tokens that are no targets add nothing to the sum and yet are counted below the
    line. Divide by the number of targets."""
    m = _mask(tokens, mask)[:, 1:]
    return (_surprise(logits[:, :-1], tokens[:, 1:]) * m).mean()


def sum_not_mean(logits, tokens, mask=None):
    """This is the sum over the targets; long batches would take larger steps. Divide
    by the number of targets."""
    m = _mask(tokens, mask)[:, 1:]
    return (_surprise(logits[:, :-1], tokens[:, 1:]) * m).sum()


def softmax_before_cross_entropy(logits, tokens, mask=None):
    """Cross-entropy takes the softmax itself; with probabilities as its logits the loss
    cannot come near zero. Give it the raw logits."""
    return next_token_loss(logits.softmax(-1), tokens, mask)


NEXT_TOKEN_LOSS = Exercise(
    id="01.next_token_loss",
    kind="I",
    points=3,
    level=1,
    minutes=15,
    task="Write next_token_loss(logits, tokens, mask=None): the mean of -ln p over the "
    "tokens that are targets. The logits at t are about the token at t + 1; the mask "
    "is True at tokens that are targets.",
    solution={"next_token_loss": next_token_loss},
    check=agrees("next_token_loss", batches, wrt=[0]),
    mutants={
        "next_token_loss": (
            no_shift,
            double_shift,
            backwards,
            mask_of_the_asker,
            mask_forgotten,
            mean_of_row_means,
            divided_by_all,
            sum_not_mean,
            softmax_before_cross_entropy,
        )
    },
    hints=(
        "Which token can the logits at position t not have seen yet? How many tokens "
        "of a row does nobody predict?",
        "Drop the last position of the logits, the first of the tokens and the first "
        "of the mask. Then they stand side by side.",
        "losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, "
        "1:].flatten(), reduction='none'); then the mean of those where mask[:, "
        "1:].flatten() is True.",
    ),
)
