r"""Soft prompts: words that no dictionary has, learned.

.. math:: x = [p_1 \ldots p_P; \; E(tokens)], \qquad p_i \in R^C \text{ learned}

The best prompt of P words is a search in a finite set; the best P vectors can be found
by gradient descent. Only they are learned, P times C numbers, and everything else is
frozen. Here they are *new tokens*: ids V, V + 1, ... that the embedding knows and the
head does not, so a prompt is written before a text like any other token, and batches,
masks, caches and generation need not know.

P-tuning v1 makes the vectors with a small network of the whole prompt, so that they
hang together; it is thrown away after training (``freeze_prompt``).

Source: Lester et al. 2021 (prompt tuning, arXiv:2104.08691), section 2; Liu et al. 2021
(P-tuning, 2103.10385), section 3.2. Differs from the second: an LSTM there and an MLP
here, as in PEFT's default.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillm.errors import require, require_count


class SoftPrompt(nn.Module):
    """An embedding with P more tokens, which alone are learned.

    Args:
        embedding: of V tokens; frozen here.
        start: (P, C), what the new vectors begin with.
        hidden: width of the network that makes them of ``start``, for P-tuning; None
            learns them directly.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        start: Float[Tensor, "P C"],
        hidden: int | None = None,
    ):
        super().__init__()
        self.embedding = embedding.requires_grad_(False)
        self.prompt, self.network = nn.Parameter(start.clone()), None
        if hidden is not None:
            C = start.shape[1]
            first, last = nn.Linear(C, hidden), nn.Linear(hidden, C)
            inner = (nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            self.network = nn.Sequential(first, *inner, last).to(start)

    @property
    def weight(self) -> Tensor:
        """Of the plain embedding, as others ask for it."""
        return self.embedding.weight

    def vectors(self) -> Float[Tensor, "P C"]:
        """The prompt, as the model sees it."""
        return self.prompt if self.network is None else self.network(self.prompt)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        V, x = self.embedding.num_embeddings, self.vectors()
        plain = self.embedding(tokens.clamp(max=V - 1))
        soft = x[(tokens - V).clamp(min=0)]
        return torch.where((tokens >= V)[..., None], soft.to(plain.dtype), plain)


def apply_prompt(
    model: nn.Module,
    length: int = 8,
    start: Sequence[int] | None = None,
    hidden: int | None = None,
) -> list[int]:
    """Freeze a model and give it a soft prompt; return the prompt's ids.

    Write them before every text: ``[*ids, *tokens]``; they are no targets.

    Args:
        model: changed in place; its vocabulary grows by the ids, its head does not.
        length: P.
        start: tokens whose embeddings the vectors begin with (repeated, cut to P); not
            given, random ones. Lester et al. found words better than noise.
        hidden: width of P-tuning's network.

    Raises:
        ValueError: sizes that are no counts, tokens that the model does not know, a
            model that has a soft prompt already.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> ids = apply_prompt(model, length=3)
    >>> ids, model(torch.tensor([[*ids, 5, 6]])).shape
    ([64, 65, 66], torch.Size([1, 5, 64]))
    """
    require_count(length=length, hidden=1 if hidden is None else hidden)
    embedding, V = model.embed_tokens, model.config.vocab_size
    plain = isinstance(embedding, nn.Embedding)
    require(plain, "model", "prompted", "without a soft prompt", "take a plain copy")
    if start is None:
        start = torch.randint(V, (length,)).tolist()
    known = len(start) > 0 and all(0 <= i < V for i in start)
    require(known, "start", start, f"token ids in 0..{V - 1}", "encode some words")
    places = torch.as_tensor(start, device=embedding.weight.device)
    begin = embedding.weight.detach()[places.repeat(-(-length // len(places)))[:length]]
    model.requires_grad_(False)
    model.embed_tokens = SoftPrompt(embedding, begin, hidden)
    model.config = replace(model.config, vocab_size=V + length)
    return list(range(V, V + length))


@torch.no_grad()
def freeze_prompt(model: nn.Module) -> nn.Module:
    """Keep the vectors that P-tuning's network makes, and throw the network away."""
    soft = model.embed_tokens
    ok, remedy = isinstance(soft, SoftPrompt), "apply_prompt(model, ...) first"
    require(ok, "model", "plain", "one with a soft prompt", remedy)
    soft.prompt.data, soft.network = soft.vectors().clone(), None
    return model
