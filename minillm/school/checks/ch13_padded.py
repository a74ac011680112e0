"""Chapter 13: a log-probability that depends on how wide the batch is."""

import torch

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees

END = 0  # the end of a turn, and also what rows are filled up with


def _scored(logits, tokens):
    logprobs = logits[:, :-1].log_softmax(-1)
    return logprobs.gather(-1, tokens[:, 1:, None])[..., 0]


def response_logprobs(logits, tokens, prompt_lengths, lengths):
    """The log-probability of each response, its end included."""
    at = torch.arange(1, tokens.shape[1])
    response = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    return (_scored(logits, tokens) * response).sum(1)


def padding_counts(logits, tokens, prompt_lengths, lengths):
    """The padding behind each response is still scored, so a short response in a wide
    batch looks improbable. Stop where the row ends."""
    at = torch.arange(1, tokens.shape[1])
    return (_scored(logits, tokens) * (at >= prompt_lengths[:, None])).sum(1)


def end_of_turn_lost(logits, tokens, prompt_lengths, lengths):
    """Every token with the padding's id was left out, and the end of the turn, which
    has the same id, with it. A model then never learns to stop: go by length."""
    at = torch.arange(1, tokens.shape[1])
    response = (at >= prompt_lengths[:, None]) & (tokens[:, 1:] != END)
    return (_scored(logits, tokens) * response).sum(1)


def prompt_counts(logits, tokens, prompt_lengths, lengths):
    """The padding is gone, but the prompt is scored now. In the margin it cancels; in
    rewards it does not. Begin where the prompt ends."""
    at = torch.arange(1, tokens.shape[1])
    return (_scored(logits, tokens) * (at < lengths[:, None])).sum(1)


def one_too_early(logits, tokens, prompt_lengths, lengths):
    """The mask counts positions of the logits, which lie one before their tokens: the
    first token of the response is lost and one of the padding is counted."""
    at = torch.arange(tokens.shape[1] - 1)
    response = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    return (_scored(logits, tokens) * response).sum(1)


def averaged(logits, tokens, prompt_lengths, lengths):
    """The mean over a response's tokens hides the width, and is not what DPO asks for:
    it wants the log-probability of the whole response. Mask, and sum."""
    total = response_logprobs(logits, tokens, prompt_lengths, lengths)
    return total / (lengths - prompt_lengths)


def batches(seed: int) -> dict:
    """Rows that end with END and are filled up with it, to different widths."""
    rng = torch.Generator().manual_seed(seed)
    B, T, V = 3, 12, 9
    logits = 2 * torch.randn(B, T, V, generator=rng)
    tokens = torch.randint(1, V, (B, T), generator=rng)
    prompts, lengths = torch.tensor([3, 5, 2]), torch.tensor([10, 8, 6])
    tokens = tokens.masked_fill(torch.arange(T) >= lengths[:, None] - 1, END)
    return {
        "a wide batch": (logits, tokens, prompts, lengths),
        "a narrow batch": (logits[:, :10], tokens[:, :10], prompts, lengths),
        "the shortest alone": (logits[2:], tokens[2:], prompts[2:], lengths[2:]),
    }


PADDED_LOGPROB = Exercise(
    id="13.padded_logprob",
    kind="D",
    points=2,
    level=2,
    minutes=10,
    task="This response_logprobs(logits, tokens, prompt_lengths, lengths) gives "
    "another answer when a longer row joins the batch. Rows are filled up with the id "
    "that also ends a turn; lengths counts real tokens, the end of the turn included. "
    "Repair it.",
    solution={"response_logprobs": response_logprobs},
    check=agrees("response_logprobs", batches, wrt=[0]),
    mutants={
        "response_logprobs": (
            padding_counts,
            end_of_turn_lost,
            prompt_counts,
            one_too_early,
            averaged,
        )
    },
    hints=(
        "Print the tokens that are counted, for the shortest row. Where should it "
        "stop?",
        "The mask knows where the response begins. By the id you cannot tell where it "
        "ends; by the length you can.",
        "response = (at >= prompt_lengths[:, None]) & (at < lengths[:, None]).",
    ),
    start={"response_logprobs": padding_counts},
)
