"""Ask a fine-tuned model: many prompts at a time, each until its turn ends.

Prompts of unequal lengths are padded on the left, so that every row's next token stands
in the same column; ``generate`` masks the padding and counts positions from the first
real token. A row alone and in a batch says the same.
"""

from collections.abc import Sequence

import torch

from minillm.data.chat import encode_prompt, stop_token
from minillm.data.messages import Message, conversation
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.model import GPT, GREEDY, Sampling, generate


def respond(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[Message]],
    max_new_tokens: int = 48,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    B: int = 64,
    template: Template = CHATML,
) -> list[str]:
    """What the model says to each prompt, without the mark that ends its turn.

    Args:
        model: fine-tuned on the template.
        tokenizer: the model's own.
        prompts: what a user says, or conversations that end with the user's turn.
        max_new_tokens: who has not ended the turn by then is cut off.
        sampling: how tokens are chosen; the most probable one if not given.
        generator: source of randomness, for draws that can be repeated.
        B: prompts answered at a time.
        template: the marks.

    Raises:
        ValueError: prompts that are one string or no conversations, a prompt that
            leaves no room for ``max_new_tokens`` in the model's context.

    >>> from minillm.model import GPTConfig
    >>> tokenizer = Tokenizer(merges=())
    >>> model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16))
    >>> len(respond(model, tokenizer, ["hi", "how are you?"], max_new_tokens=4))
    2
    """
    several = not isinstance(prompts, str)
    require(several, "prompts", prompts, "a list", "put the one prompt in brackets")
    require_count(B=B)
    stop, pad = stop_token(tokenizer, template), tokenizer.pad
    chats = [conversation(p) if isinstance(p, str) else p for p in prompts]
    ids = [encode_prompt(tokenizer, chat, template) for chat in chats]
    said = []
    for start in range(0, len(ids), B):
        rows = ids[start : start + B]
        made = generate(model, rows, max_new_tokens, sampling, stop, pad, generator)
        said += [row[:-1] if row[-1] == stop else row for row in made.completions()]
    return [tokenizer.decode(row) for row in said]
