"""A model that says what it was told to say, so that truths can be known by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minillm.model import GPTConfig, KVCache


class Rigged(nn.Module):
    """A table in the shape of a GPT: log-probabilities by all that stands before.

    Args:
        logprobs: tokens so far, padding left out -> (V,) float64.
        V: size of the vocabulary.
        context: as a GPT's.
    """

    def __init__(self, logprobs: Callable[[tuple], Tensor], V: int, context: int = 64):
        super().__init__()
        self.config = GPTConfig(V, n_layer=1, n_head=1, n_embd=2, context=context)
        self.embed_tokens = nn.Embedding(V, 2).double()  # tells device and type
        self.logprobs, self.lm_head = logprobs, nn.Identity()
        self.modes: list[bool] = []

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.modes.append(self.training)
        start = cache.length if cache else 0
        if cache:
            tokens = torch.cat([self.past, tokens], dim=1) if start else tokens
            self.past, cache.length = tokens, tokens.shape[1]
        mask = torch.ones_like(tokens).bool() if mask is None else mask
        rows = [
            [self.logprobs(tuple(row[:t][real[:t]].tolist())) for t in ends(start, row)]
            for row, real in zip(tokens, mask, strict=True)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    forward = hidden


def ends(start: int, row: Tensor) -> Sequence[int]:
    """Where each prefix ends that goes beyond ``start``."""
    return range(start + 1, len(row) + 1)
