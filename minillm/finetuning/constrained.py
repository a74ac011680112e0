r"""Constrained decoding: whatever the model thinks, what it writes parses.

At each step every token that the automaton cannot read is given the logit minus
infinity, and the rest is drawn from as ever:

.. math:: q(v | x) = \frac{p(v | x) \, [v \in A(x)]}{\sum_{w \in A(x)} p(w | x)}

A token is many bytes, or half a character; the automaton reads bytes, so it need not
care. The end of text is allowed only where the text is complete.

*It closes in time.* With r tokens left, a token is allowed only if the state after it
is at most r - 2 bytes from its end: one for itself, one for the end of text. Some token
always is: at distance d > 0 some byte leads to d - 1, each byte is a token, and
:math:`d \le r - 1` held before. So the mask is never empty, and no text is cut off.

*It is not the model's own distribution of valid texts.* That is p(x) over the sum of
all valid p. Here each step forgets how much mass it threw away: a model that begins an
object with 99 % and then nearly always breaks it still begins one in 99 % of draws. The
two agree only where every prefix leaves the same share of mass to what is valid. White
space is JSON, too, and a model that likes blanks may write little else; a schema has
none but its own.

Source: Willard & Louf 2023 (arXiv:2307.09702), section 3, for masks from automata; Park
et al. 2024 (Grammar-Aligned Decoding, 2405.21047), section 3, for what is distorted.
Differs from Outlines and XGrammar: these precompute masks of large vocabularies; here
the mask of a state is made when it is first met, token by token, and kept.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.finetuning.json_automaton import ANYTHING, State, distance, read
from minillm.model import (
    GPT,
    Generation,
    KVCache,
    Sampling,
    pad_left,
    sampling_logprobs,
)
from minillm.model.sampling import draw


class JsonMask:
    """Which tokens may come next.

    Args:
        tokenizer: of the model; each of its tokens is read as bytes.
        stop: the token that ends the text, allowed where it is complete.
        depth: so many brackets may be open at once.

    Raises:
        ValueError: a depth that is no count, a stop that is no special token.

    >>> tokenizer = Tokenizer(merges=())
    >>> mask = JsonMask(tokenizer, stop=tokenizer.eot)
    >>> "".join(map(chr, mask.allowed(ANYTHING, room=2).nonzero().flatten()))
    '0123456789'
    """

    def __init__(self, tokenizer: Tokenizer, stop: int, depth: int = 16):
        require_count(depth=depth)
        special, remedy = tokenizer.special_tokens.values(), "give tokenizer.eot"
        require(stop in special, "stop", stop, "a special token's id", remedy)
        self.stop, self.depth = stop, depth
        plain = range(tokenizer.vocab_size - len(special))
        self.bytes = [tokenizer.decode_bytes([i]) for i in plain]
        self.vocab_size = tokenizer.vocab_size
        self.distances = lru_cache(maxsize=4096)(self._distances)

    def after(self, state: State, token: int) -> State:
        """What is to come after an allowed token; the end changes nothing."""
        if token == self.stop:
            return state
        return read(self.bytes[token], state, self.depth)

    def allowed(self, state: State, room: int) -> Bool[Tensor, " V"]:
        """True at the tokens that leave a text which can be closed in ``room`` tokens.

        Args:
            state: what is to come.
            room: tokens that may still be written, the end of text among them.
        """
        mask = self.distances(state) <= room - 2
        mask[self.stop] = distance(state) == 0
        return mask

    def _distances(self, state: State) -> Float[Tensor, " V"]:
        """How far each token would leave us from the end; infinite if it cannot come.

        Special tokens stay infinite: none of them is spelled in bytes.
        """
        found = torch.full((self.vocab_size,), torch.inf)
        for token, text in enumerate(self.bytes):
            ahead = read(text, state, self.depth)
            if ahead is not None:
                found[token] = distance(ahead)
        return found


@torch.no_grad()
def generate_json(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    mask: JsonMask,
    start: State = ANYTHING,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
) -> Generation:
    """Continue each prompt by one JSON text and the end of text.

    Args:
        model: the language model; its training mode is as before afterwards.
        prompts: B lists of token ids, none empty.
        max_new_tokens: at most so many, the end of text included.
        mask: of the model's tokenizer.
        start: what is to come: anything, or a ``schema``.
        sampling: how to choose among what is allowed; as it is if not given.
        generator: source of randomness, for draws that can be repeated.

    Raises:
        ValueError: too few tokens for the shortest text and its end, a mask of another
            vocabulary, an empty prompt, more tokens than the context has room for.

    >>> from minillm.model import GPTConfig
    >>> tokenizer = Tokenizer(merges=())
    >>> model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16))
    >>> mask = JsonMask(tokenizer, stop=tokenizer.eot)
    >>> made = generate_json(model, [[5], [6, 7]], max_new_tokens=12, mask=mask)
    >>> from minillm.finetuning.json_automaton import accepts
    >>> [accepts(tokenizer.decode_bytes(row[:-1])) for row in made.completions()]
    [True, True]
    """
    _check(model, prompts, max_new_tokens, mask, start)
    device, was_training = model.embed_tokens.weight.device, model.training
    tokens, real = (t.to(device) for t in pad_left(prompts))
    B, begin = tokens.shape
    end = begin + max_new_tokens
    cache = KVCache(model.config, B, end, model.embed_tokens.weight)
    states, alive = [start] * B, torch.ones(B, dtype=torch.bool, device=device)
    padded, sampling = not real.all(), sampling or Sampling()
    model.eval()
    try:
        while alive.any():
            unseen = tokens[:, cache.length :]
            x = model.hidden(unseen, real if padded else None, cache)
            room = end - tokens.shape[1]
            allowed = torch.stack([mask.allowed(state, room) for state in states])
            allowed[~alive.cpu(), mask.stop] = True  # what is drawn there nobody reads
            logits = model.lm_head(x[:, -1]).masked_fill(
                ~allowed.to(device), -torch.inf
            )
            drawn = draw(sampling_logprobs(logits, sampling, tokens, real), generator)
            drawn = drawn.where(alive, mask.stop)
            tokens = torch.cat([tokens, drawn[:, None]], dim=1)
            real = torch.cat([real, alive[:, None]], dim=1)
            states = list(map(mask.after, states, drawn.tolist()))
            alive = alive & (drawn != mask.stop)
    finally:
        model.train(was_training)
    return Generation(tokens, real, begin)


def _check(model: GPT, prompts, n: int, mask: JsonMask, start: State) -> None:
    model.config.require_causal()
    filled = len(prompts) > 0 and all(len(prompt) > 0 for prompt in prompts)
    remedy = "give at least one token each, for instance the end of text"
    require(filled, "prompts", prompts, "non-empty lists of token ids", remedy)
    V, remedy = model.config.vocab_size, "make it of the model's tokenizer"
    known = all(0 <= i < V for prompt in prompts for i in prompt)
    require(known, "prompts", prompts, f"lists of ids in 0..{V - 1}", remedy)
    require(mask.vocab_size == V, "mask", mask.vocab_size, f"of {V} tokens", remedy)
    require_count(max_new_tokens=n)
    least, remedy = distance(start) + 1, "allow more tokens or ask for less"
    need = f"at least {least}, the shortest text and its end"
    require(n >= least, "max_new_tokens", n, need, remedy)
    total, context = max(map(len, prompts)) + n, model.config.context
    fits, remedy = f"at most {context}, the model's context", "ask for less"
    require(total <= context, "prompt length + max_new_tokens", total, fits, remedy)
