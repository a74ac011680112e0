"""Writing: feed the model its own words, one token at a time.

Without a cache, token n costs a forward pass over all n tokens before it. With one, it
costs a pass over a single token, because keys and values of the past never change. In a
batch the prompts have unequal lengths; they are padded on the left, so that all rows
write into the same column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.errors import require, require_count
from minillm.model.attention import KVCache
from minillm.model.gpt import GPT
from minillm.model.sampling import Sampling, draw, sampling_logprobs


@dataclass(frozen=True)
class Generation:
    """What ``generate`` wrote.

    Args:
        tokens: (B, T) prompts, padded on the left; what follows, padded on the right.
        mask: (B, T) True at real tokens.
        prompt_length: the column at which the completions begin.
    """

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    prompt_length: int

    def completions(self) -> list[list[int]]:
        """The new tokens of each row, the stop token included, padding left out."""
        start = self.prompt_length
        new, real = self.tokens[:, start:], self.mask[:, start:]
        return [row[keep].tolist() for row, keep in zip(new, real, strict=True)]


def pad_left(
    prompts: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Stack prompts of unequal lengths so that all end in the last column.

    Returns:
        tokens and the mask that is True at real tokens.

    >>> pad_left([[7], [8, 9]])[0]
    tensor([[0, 7],
            [8, 9]])
    """
    rows = [torch.as_tensor(prompt, dtype=torch.long) for prompt in prompts]
    ones = [torch.ones_like(row) for row in rows]
    mask = pad_sequence(ones, True, 0, "left").bool()
    return pad_sequence(rows, True, pad, "left"), mask


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: int | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Generation:
    """Continue each prompt by up to ``max_new_tokens`` tokens.

    Args:
        model: the language model; its training mode is as before afterwards.
        prompts: B lists of token ids, none empty.
        max_new_tokens: at most so many.
        sampling: how to choose; ``None`` draws from the model's own distribution.
        stop: a row ends after this token (usually end of text).
        pad: the id that fills the gaps; it is masked and never seen.
        generator: source of randomness, for draws that can be repeated.
        cached: False recomputes the whole past for every token, to see what that costs.

    Raises:
        ValueError: an encoder, no prompt, an empty one, ids that the model does not
            know (pad and stop too), more tokens than the context has room for.

    >>> from minillm.model import GPTConfig, GREEDY
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> generate(model, [[1, 2], [3]], max_new_tokens=4, sampling=GREEDY).tokens.shape
    torch.Size([2, 6])
    """
    _check(model, prompts, max_new_tokens, stop, pad)
    sampling = sampling or Sampling()
    device = model.embed_tokens.weight.device
    tokens, mask = (t.to(device) for t in pad_left(prompts, pad))
    start, was_training = tokens.shape[1], model.training
    B, end = len(prompts), start + max_new_tokens
    cache = KVCache(model.config, B, end, model.embed_tokens.weight) if cached else None
    alive = torch.ones(B, dtype=torch.bool, device=device)
    padded = not mask.all()  # what follows a stop is no matter: nobody reads that row
    model.eval()
    try:
        while tokens.shape[1] < end and alive.any():
            unseen = tokens[:, cache.length :] if cache else tokens
            x = model.hidden(unseen, mask if padded else None, cache)
            logits = model.lm_head(x[:, -1])
            logprobs = sampling_logprobs(logits, sampling, tokens, mask)
            drawn = draw(logprobs, generator)
            tokens = torch.cat([tokens, drawn.where(alive, pad)[:, None]], dim=1)
            mask = torch.cat([mask, alive[:, None]], dim=1)
            if stop is not None:
                alive = alive & (drawn != stop)
    finally:
        model.train(was_training)
    return Generation(tokens, mask, start)


def _check(model: GPT, prompts, n: int, stop: int | None, pad: int) -> None:
    def is_list(x) -> bool:
        return isinstance(x, list | tuple) and len(x) > 0

    def is_id(i) -> bool:
        return type(i) is int and i in range(model.config.vocab_size)

    model.config.require_causal()
    remedy = "give at least one token each, for instance the end-of-text token"
    ok = is_list(prompts) and all(map(is_list, prompts))
    require(ok, "prompts", prompts, "a list of non-empty lists of token ids", remedy)
    ids = f"in 0..{model.config.vocab_size - 1}"
    remedy = "use the tokenizer that the model was trained with"
    for prompt in prompts:
        known = all(map(is_id, prompt))
        require(known, "prompts", prompt, f"lists of ids {ids}", remedy)
    require(is_id(pad), "pad", pad, f"a token id {ids}", remedy)
    require(stop is None or is_id(stop), "stop", stop, f"a token id {ids}", remedy)
    require_count(max_new_tokens=n)
    total, context = max(map(len, prompts)) + n, model.config.context
    fits, remedy = f"at most {context}, the model's context", "ask for less"
    require(total <= context, "prompt length + max_new_tokens", total, fits, remedy)
