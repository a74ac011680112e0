"""Chapter 01: BERT's question about some tokens, and ELECTRA's about all of them."""

import torch
import torch.nn.functional as F

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees, all_of
from minillm.training.losses import IGNORE
from minillm.training.objectives import hide_tokens, replaced_token_loss

MASK_ID = 50


def draws(seed: int) -> dict:
    """Texts with the draws that decide who is hidden."""
    rng = torch.Generator().manual_seed(seed)
    cases = {}
    for name, shape, rate in [
        ("many are chosen", (3, 20), 0.7),
        ("fifteen percent", (2, 60), 0.15),
        ("all are chosen", (1, 40), 1.0),
        ("none is chosen", (2, 5), 0.0),
    ]:
        tokens = torch.randint(40, shape, generator=rng)
        chosen = torch.rand(shape, generator=rng) < rate
        fate = torch.rand(shape, generator=rng)
        fate[0, :3] = torch.tensor([0.1, 0.85, 0.95])  # each fate happens
        others = 40 + torch.randint(10, shape, generator=rng)  # never the token itself
        cases[name] = (tokens, chosen, fate, others, MASK_ID)
    return cases


def always_the_mask(tokens, chosen, fate, others, mask_id):
    """Every chosen token is hidden. Then the model never has to doubt a token that it
    sees, as it must when there are no masks. Let 10 % change and 10 % stay."""
    return tokens.masked_fill(chosen, mask_id), tokens.masked_fill(~chosen, IGNORE)


def targets_everywhere(tokens, chosen, fate, others, mask_id):
    """Every position is a target, so most of the loss is for copying what is in sight.
    Put -100 where nothing was chosen."""
    return hide_tokens(tokens, chosen, fate, others, mask_id)[0], tokens


def targets_of_the_changed_text(tokens, chosen, fate, others, mask_id):
    """The targets were read from the changed text, so the right answer is the mask
    itself. Read them from the true text."""
    inputs, _ = hide_tokens(tokens, chosen, fate, others, mask_id)
    return inputs, inputs.masked_fill(~chosen, IGNORE)


def kept_are_not_asked(tokens, chosen, fate, others, mask_id):
    """Tokens that were chosen and stayed are not asked for; then a token in sight would
    always be true. They are targets like the others."""
    inputs, targets = hide_tokens(tokens, chosen, fate, others, mask_id)
    return inputs, targets.masked_fill(inputs == tokens, IGNORE)


def unchosen_are_changed(tokens, chosen, fate, others, mask_id):
    """The fate was applied to all tokens, chosen or not. It concerns the chosen."""
    everywhere = torch.ones_like(chosen)
    inputs, _ = hide_tokens(tokens, everywhere, fate, others, mask_id)
    return inputs, tokens.masked_fill(~chosen, IGNORE)


def pairs(seed: int) -> dict:
    """Scores, a text, the same text with some tokens replaced, and a mask."""
    rng = torch.Generator().manual_seed(seed)
    B, T = 3, 9
    scores = 2 * torch.randn(B, T, generator=rng)
    tokens = torch.randint(40, (B, T), generator=rng)
    changed = torch.rand(B, T, generator=rng) < 0.3
    changed[:, 1] = True
    corrupted = torch.where(changed, tokens + 1, tokens)
    mask = torch.arange(T) < torch.tensor([[9], [4], [6]])
    return {
        "unequal lengths": (scores, tokens, corrupted, mask),
        "padding on the left": (scores, tokens, corrupted, mask.flip(1)),
        "sure of itself": (100 * scores, tokens, corrupted, mask),
        "nothing was replaced": (scores, tokens, tokens, mask),
    }


def _surprise(scores, replaced):
    replaced = replaced.to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, replaced, reduction="none")


def labels_inverted(scores, tokens, corrupted, mask):
    """The scores are logits of "replaced", and the labels say "original". Compare with
    ``!=``."""
    return _surprise(scores, tokens == corrupted)[mask].mean()


def only_the_replaced(scores, tokens, corrupted, mask):
    """Only replaced tokens are asked about, and the answer is always yes. Ask about
    every real token: that is what the method gains by."""
    replaced = tokens != corrupted
    chosen = mask & replaced
    return _surprise(scores, replaced)[chosen].sum() / chosen.sum().clamp(min=1)


def padding_counts(scores, tokens, corrupted, mask):
    """The padding is scored, too. Take the mean where the mask is True."""
    return _surprise(scores, tokens != corrupted).mean()


def shifted(scores, tokens, corrupted, mask):
    """The labels were shifted, as for the next token. This model sees the token that it
    is asked about: nothing moves."""
    return _surprise(scores[:, :-1], (tokens != corrupted)[:, 1:])[mask[:, 1:]].mean()


def sigmoid_twice(scores, tokens, corrupted, mask):
    """binary_cross_entropy_with_logits takes the sigmoid itself; it was given
    probabilities. Give it the raw scores."""
    return _surprise(scores.sigmoid(), tokens != corrupted)[mask].mean()


HIDDEN_TOKENS = Exercise(
    id="01.hidden_tokens",
    kind="I",
    points=4,
    level=2,
    minutes=25,
    task="Write hide_tokens(tokens, chosen, fate, others, mask_id), which returns "
    "inputs and targets of masked language modelling: a chosen token becomes mask_id "
    "if its fate is below 0.8, its other if below 0.9, and else stays. And write "
    "replaced_token_loss(scores, tokens, corrupted, mask): the mean binary "
    "cross-entropy over all real tokens; the scores are logits of 'replaced'.",
    solution={"hide_tokens": hide_tokens, "replaced_token_loss": replaced_token_loss},
    check=all_of(
        agrees("hide_tokens", draws, rtol=0),
        agrees("replaced_token_loss", pairs, wrt=[0]),
    ),
    mutants={
        "hide_tokens": (
            always_the_mask,
            targets_everywhere,
            targets_of_the_changed_text,
            kept_are_not_asked,
            unchosen_are_changed,
        ),
        "replaced_token_loss": (
            labels_inverted,
            only_the_replaced,
            padding_counts,
            shifted,
            sigmoid_twice,
        ),
    },
    hints=(
        "Of a hundred tokens, how many does each of the two methods ask about?",
        "Inputs: start from the tokens and change two groups of the chosen. Targets: "
        "the true tokens, -100 elsewhere. For the loss: one label for each real token.",
        "torch.where(chosen & (fate < 0.8), mask_id, tokens), and so on; "
        "F.binary_cross_entropy_with_logits(scores[mask], "
        "(tokens != corrupted)[mask].float()).",
    ),
)
