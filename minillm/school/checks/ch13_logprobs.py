"""Chapter 13: how probable was the response? Six ways to count something else."""

import torch

from minillm.alignment.logprobs import sequence_logprobs
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees


def batches(seed: int) -> dict:
    """Logits, tokens and masks; prompts and responses of unequal lengths."""
    rng = torch.Generator().manual_seed(seed)
    B, T, V = 3, 9, 7
    logits = 2 * torch.randn(B, T, V, generator=rng)
    tokens = torch.randint(V, (B, T), generator=rng)
    at = torch.arange(T)
    begin, end = torch.tensor([[2], [4], [3]]), torch.tensor([[9], [6], [7]])
    right = (at >= begin) & (at < end)
    left = (at >= torch.tensor([[5], [4], [7]])) & (at < T)
    return {
        "padding on the right": (logits, tokens, right),
        "padding on the left": (logits, tokens, left),
        "a single row": (logits[1:2], tokens[1:2], right[1:2]),
        "extreme logits": (100 * logits, tokens, right),
        "the mean": (logits, tokens, right, True),
        "the mean, padding on the left": (logits, tokens, left, True),
    }


def _logprobs(logits, tokens):
    """log p of ``tokens[t]`` under ``logits[t]``, whatever t means to the caller."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def _reduced(logprobs, mask, average):
    total = logprobs.where(mask, 0.0).sum(1)
    return total / mask.sum(1) if average else total


def no_shift(logits, tokens, mask, average=False):
    """Each token is scored by the logits at its own place, which have seen it. The
    logits at t score the token at t + 1."""
    return _reduced(_logprobs(logits, tokens), mask, average)


def mask_of_the_asker(logits, tokens, mask, average=False):
    """The tokens were shifted and the mask was not, so the first token of the response
    is lost and what follows its end counts. The mask moves with the tokens."""
    scored = _logprobs(logits[:, :-1], tokens[:, 1:])
    return _reduced(scored, mask[:, :-1], average)


def mask_forgotten(logits, tokens, mask, average=False):
    """Prompt and padding are counted. Keep only tokens at which the mask is True."""
    scored = _logprobs(logits[:, :-1], tokens[:, 1:])
    return _reduced(scored, torch.ones_like(mask[:, 1:]), average)


def always_the_mean(logits, tokens, mask, average=False):
    """This is the mean over the response's tokens, also where the sum was asked for.
    DPO needs the log-probability of the whole response: the sum."""
    return sequence_logprobs(logits, tokens, mask, average=True)


def mean_over_all_columns(logits, tokens, mask, average=False):
    """The sum is divided by the width of the batch. Divide by the tokens of each
    response, or the mean depends on who else is in the batch."""
    total = sequence_logprobs(logits, tokens, mask)
    return total / (tokens.shape[1] - 1) if average else total


def no_softmax(logits, tokens, mask, average=False):
    """The logits themselves were added up. They become log-probabilities by
    ``log_softmax``."""
    scored = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return _reduced(scored, mask[:, 1:], average)


def negative_log_prob(logits, tokens, mask, average=False):
    """This is the surprise, as in a loss. Asked for is the log-probability, which is
    at most 0."""
    return -sequence_logprobs(logits, tokens, mask, average)


SEQUENCE_LOGPROBS = Exercise(
    id="13.sequence_logprobs",
    kind="I",
    points=3,
    level=1,
    minutes=15,
    task="Write sequence_logprobs(logits, tokens, mask, average=False): for each row "
    "the log-probability of the tokens at which mask is True, summed, or averaged over "
    "them. Logits at t score the token at t + 1.",
    solution={"sequence_logprobs": sequence_logprobs},
    check=agrees("sequence_logprobs", batches, wrt=[0]),
    mutants={
        "sequence_logprobs": (
            no_shift,
            mask_of_the_asker,
            mask_forgotten,
            always_the_mean,
            mean_over_all_columns,
            no_softmax,
            negative_log_prob,
        )
    },
    hints=(
        "It is the loss of chapter 1 with another sign, row by row. What is shifted?",
        "log_softmax, gather the token that came, keep the response's tokens, add up.",
        "logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0], then "
        "where(mask[:, 1:], ..., 0).sum(1).",
    ),
)
