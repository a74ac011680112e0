"""Chapter 01: two helpers that are each right, and shift twice together."""

import torch.nn.functional as F

from minillm.school.checks.ch01_losses import (
    batches,
    mask_forgotten,
    mask_of_the_asker,
    no_shift,
)
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees
from minillm.training.losses import IGNORE


def make_labels(tokens, mask):
    """What each position should predict; -100 where nothing is asked."""
    labels = tokens.masked_fill(~mask, IGNORE).roll(-1, dims=1)
    labels[:, -1] = IGNORE
    return labels


def loss_of_labels(logits, labels):
    """Cross-entropy, shifted as many libraries do it."""
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


def labelled_loss(logits, tokens, mask):
    """The code to be repaired: each half is right, but not with the other."""
    return loss_of_labels(logits, make_labels(tokens, mask))


def repaired(logits, tokens, mask):
    """One of two repairs: labels are not shifted, the loss shifts."""
    return loss_of_labels(logits, tokens.masked_fill(~mask, IGNORE))


def shifted_twice(logits, tokens, mask):
    """The labels are still shifted twice, so the model learns to skip a word. Take the
    shift out of one of the two functions."""
    return labelled_loss(logits, tokens, mask)


def never_shifted(logits, tokens, mask):
    """Now nobody shifts: each position is asked for the token that it sees, and the
    loss falls towards zero for nothing. One of the two shifts must stay."""
    return no_shift(logits, tokens, mask)


def labels_moved_right(logits, tokens, mask):
    """The labels were rolled the wrong way, so the shifts do not add up to one. Take
    one out; do not undo it by another."""
    moved = tokens.masked_fill(~mask, IGNORE).roll(1, dims=1)
    return F.cross_entropy(logits.flatten(0, 1), moved.flatten(), ignore_index=IGNORE)


def mask_left_behind(logits, tokens, mask):
    """The tokens are shifted once, the mask is not: where padding begins, a pad becomes
    a label. Mask first, then shift both together."""
    return mask_of_the_asker(logits, tokens, mask)


def mask_lost(logits, tokens, mask):
    """The shift is right, but padding and prompts are targets now. Keep the -100."""
    return mask_forgotten(logits, tokens)


def masked_batches(seed: int) -> dict:
    """The batches that have a mask."""
    return {name: args for name, args in batches(seed).items() if len(args) == 3}


DOUBLE_SHIFT = Exercise(
    id="01.double_shift",
    kind="D",
    points=2,
    level=2,
    minutes=10,
    task="A model trained with this labelled_loss(logits, tokens, mask) skips words. "
    "Both helpers look right. Repair one of them.",
    solution={"labelled_loss": repaired},
    check=agrees("labelled_loss", masked_batches, wrt=[0]),
    mutants={
        "labelled_loss": (
            shifted_twice,
            never_shifted,
            labels_moved_right,
            mask_left_behind,
            mask_lost,
        )
    },
    hints=(
        "Take a row of tokens 1 2 3 4 5. Which label meets the logits of position 0?",
        "Two people wrote the two helpers, and each of them shifted.",
        "Either make_labels returns tokens.masked_fill(~mask, -100) as they are, or "
        "loss_of_labels compares all logits with all labels. Not both.",
    ),
    start={"labelled_loss": labelled_loss},
)
