r"""How surprised is the model? Nats, perplexity, bits per byte.

A model gives every token a probability; its surprise is -ln p, in nats. Three ways to
state the average:

.. math:: loss = \frac{1}{N} \sum_i -\ln p_i, \qquad perplexity = e^{loss}, \qquad
          bits/byte = \frac{\sum_i -\ln p_i}{\ln 2 \cdot bytes}

Loss and perplexity depend on the tokenizer: larger tokens are fewer and harder. Bits
per byte do not, so only they compare models with different vocabularies, or a model
with gzip, which is a language model too: whoever predicts well, compresses well.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import is_count, require
from minillm.model import GPT
from minillm.model.layers import at_least_float32


def token_logprobs(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"]
) -> Float[Tensor, "B T-1"]:
    r"""The log-probability of each token but the first, given those before it.

    .. math:: logprobs_t = \ln softmax(logits_t)[tokens_{t+1}]

    Args:
        logits: position t scores the token at t + 1.
        tokens: the same sequences that the logits were computed from.

    Raises:
        ValueError: shapes that do not belong together, or rows of a single token.

    >>> token_logprobs(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])).exp()
    tensor([[0.2500, 0.2500]])
    """
    (B, T), shape = tokens.shape, tuple(logits.shape)
    need = f"of shape (B, T, V) for tokens of shape {(B, T)}"
    require(shape[:-1] == (B, T), "logits", shape, need, "pass all T: we shift here")
    require(T > 1, "tokens", (B, T), "(B, T) with T > 1", "give longer rows")
    logprobs = logits[:, :-1].log_softmax(-1)
    return logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def perplexity(nats: float, n_tokens: int) -> float:
    """Return e to the mean surprise: how many tokens the model hesitates between.

    Divide the sum by the tokens first, then take the exponential: a mean of
    perplexities of documents or batches is another, larger number.

    >>> round(perplexity(nats=1.0 + 3.0, n_tokens=2), 3)
    7.389
    """
    require(n_tokens > 0, "n_tokens", n_tokens, "positive", "score at least one token")
    loss = nats / n_tokens
    return math.exp(loss) if loss < 709 else math.inf  # beyond, exp itself overflows


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return nats as bits, for each byte of UTF-8 text that the tokens stand for.

    >>> bits_per_byte(nats=8 * math.log(2), n_bytes=1)
    8.0
    """
    require(n_bytes > 0, "n_bytes", n_bytes, "positive", "score at least one byte")
    return nats / math.log(2) / n_bytes


@dataclass(frozen=True)
class Likelihood:
    """The surprise of a text: nats, over how many tokens and bytes."""

    nats: float
    n_tokens: int
    n_bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return perplexity(self.nats, self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return bits_per_byte(self.nats, self.n_bytes)


@torch.no_grad()
def score_stream(
    model: GPT, stream: Int[Tensor, " N"], T: int | None = None, B: int = 16
) -> Float[Tensor, " N-1"]:
    """Log-probabilities of a stream longer than the context, each token counted once.

    Windows of T tokens overlap by half. The first half of a window only gives context
    to the second, so that (but for the first T/2) every token is predicted from at
    least T/2 tokens before it. Windows that do not overlap would charge the model for
    the ignorance of their first tokens.

    Args:
        model: the language model, left in the mode it was in.
        stream: token ids, all documents in a row.
        T: window; ``None`` takes the model's context.
        B: windows at a time.

    Raises:
        ValueError: fewer than two tokens, or a window that the model cannot take.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16, context=8))
    >>> score_stream(model, torch.arange(30)).shape
    torch.Size([29])
    """
    N, context = len(stream), model.config.context
    T = context if T is None else T
    require(N >= 2, "stream", N, "at least 2 tokens long", "give more text")
    fits = is_count(T) and 2 <= T <= context
    require(fits, "T", T, f"in 2..{context}, the model's context", "choose another")
    T = min(T, N)
    half = T // 2
    starts = [*range(0, N - T, half), N - T]  # the last window ends with the stream
    rows = torch.stack([stream[s : s + T] for s in starts]).long()
    scores, was_training = [], model.training
    model.eval()
    try:
        for tokens in rows.to(model.embed_tokens.weight.device).split(B):
            logits = at_least_float32(model(tokens))
            scores.append(token_logprobs(logits, tokens).cpu())
    finally:
        model.train(was_training)
    parts, done = [], 0  # done: predictions that earlier windows have made
    for s, row in zip(starts, torch.cat(scores), strict=True):
        parts.append(row[done - s :])
        done = s + T - 1
    return torch.cat(parts)
