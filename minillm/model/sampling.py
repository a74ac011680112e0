"""From scores to a choice: how the next token is drawn.

A model ends in a distribution; a sampler decides how much of it to believe. Each rule
here is one function on logits (B, V) that sets what it rejects to minus infinity, and
``sampling_logprobs`` applies them in the order that transformers uses: repetition
penalty, temperature, top-k, top-p, min-p. Whoever needs the probability of a sampled
token later (PPO, GRPO) asks the same function, so sampling and scoring cannot differ.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require, require_count
from minillm.model.layers import at_least_float32


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Args:
        temperature: divides the logits; 0 means greedy, the most probable token.
        top_k: keep the k most probable tokens.
        top_p: keep the smallest set of tokens with probability at least p.
        min_p: keep tokens at least p times as probable as the most probable one.
        repetition_penalty: above 1, makes tokens that occurred less probable.

    Raises:
        ValueError: a value out of its range.

    >>> Sampling(top_p=1.5)
    Traceback (most recent call last):
    ValueError: top_p must be in (0, 1], got 1.5; 1 keeps everything
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        t, k, p, m = self.temperature, self.top_k, self.top_p, self.min_p
        warm = t == 0 or 1e-6 <= t < math.inf  # a smaller one overflows float32
        require(warm, "temperature", t, "0 or at least 1e-6", "0 is greedy")
        require_count(top_k=1 if k is None else k)
        require(p is None or 0 < p <= 1, "top_p", p, "in (0, 1]", "1 keeps everything")
        require(m is None or 0 <= m <= 1, "min_p", m, "in [0, 1]", "0 keeps everything")
        r = self.repetition_penalty
        require(0 < r < math.inf, "repetition_penalty", r, "positive", "1 is none")


GREEDY = Sampling(temperature=0.0)


def penalize_repetition(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None,
    penalty: float,
) -> Float[Tensor, "B V"]:
    """Divide positive logits of tokens that occurred by ``penalty``; multiply negative.

    Source: Keskar et al. 2019 (CTRL), section 4.1.
    Differs from the paper: negative logits are multiplied, else the penalty would make
    them more probable. Padding (mask False) does not count as having occurred.
    """
    occurs = torch.ones_like(tokens) if mask is None else mask
    times = torch.zeros_like(logits).scatter_add(1, tokens, occurs.to(logits.dtype))
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(times > 0, penalized, logits)


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the k largest logits of each row, and those equal to the k-th.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
    tensor([[-inf, 3., 2.]])
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the most probable tokens until their probability reaches ``p``.

    The token that crosses p stays, so at least one always does.

    Source: Holtzman et al. 2020, section 3.1 (nucleus sampling).

    >>> keep_top_p(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), p=0.6).exp()
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """
    if p == 1:
        return logits  # the sum below reaches 1 before the last token, by rounding
    # By logits: of two that differ in their last bit only, the better one comes first.
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of all better tokens
    reject = torch.empty_like(index, dtype=torch.bool)
    reject.scatter_(-1, index, before >= p)  # back to the vocabulary's order
    return logits.masked_fill(reject, -torch.inf)


def keep_min_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep tokens at least ``p`` times as probable as the most probable one.

    Source: Nguyen et al. 2024 (min-p), section 3.

    >>> keep_min_p(torch.tensor([[0.6, 0.3, 0.1]]).log(), p=0.4).exp()
    tensor([[0.6000, 0.3000, 0.0000]])
    """
    odds = (logits - logits.max(-1, keepdim=True).values).exp()
    return logits.masked_fill(odds < p, -torch.inf)


def sampling_logprobs(
    logits: Float[Tensor, "B V"],
    sampling: Sampling,
    tokens: Int[Tensor, "B T"] | None = None,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B V"]:
    """Log-probabilities of the distribution that ``sampling`` really draws from.

    Args:
        logits: of the next token.
        sampling: the rules.
        tokens: what stands before, for the repetition penalty.
        mask: True at real tokens among them.

    Returns:
        in float32 at least: bfloat16 cannot even sum to 1 over a vocabulary.

    >>> sampling_logprobs(torch.tensor([[1.0, 2.0]]), GREEDY)
    tensor([[-inf, 0.]])
    """
    logits = at_least_float32(logits)
    if sampling.repetition_penalty != 1.0:
        ask = "pass the sequence so far"
        require(tokens is not None, "tokens", tokens, "given for the penalty", ask)
        logits = penalize_repetition(logits, tokens, mask, sampling.repetition_penalty)
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    # A difference: large logits over a small temperature would be inf - inf = NaN.
    best = logits.max(-1, keepdim=True).values
    logits = (logits - best) / sampling.temperature
    limits = (sampling.top_k, sampling.top_p, sampling.min_p)
    for keep, limit in zip((keep_top_k, keep_top_p, keep_min_p), limits, strict=True):
        logits = keep(logits, limit) if limit is not None else logits
    return logits.log_softmax(-1)


def draw(
    logprobs: Float[Tensor, "B V"], generator: torch.Generator | None = None
) -> Int[Tensor, " B"]:
    """Draw one token a row: the first whose cumulative probability exceeds a random u.

    One random number a row is enough; ``torch.multinomial`` makes one for each token of
    the vocabulary. Added up in float64, so that rare tokens keep their share; a token
    of probability 0 adds nothing and is never the first.

    >>> draw(torch.tensor([[0.0, 1.0, 0.0]]).log())
    tensor([1])
    """
    cumulative = logprobs.exp().double().cumsum(-1)
    device = generator.device if generator else logprobs.device
    u = cumulative.new_empty(len(logprobs), 1, device=device)
    u.uniform_(generator=generator)
    u = u.to(logprobs.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u, right=True)[:, 0]
