"""Preferences as batches: two rows of tokens for each pair, scored in one pass.

    row 0..B-1     prompt  chosen response    <|im_end|>  pad
    row B..2B-1    prompt  rejected response  <|im_end|>  pad pad
    mask           seen    target                         seen

The mask is False at the whole prompt, also where the assistant has spoken in it before:
in DPO's margin the prompt cancels, but not in rewards, and not in a mean over tokens.

The reference never changes, so its log-probs are computed once, before training, and
kept with the rows: no second model in memory, and half of the work of each step saved.
So the model that is about to be trained is a valid reference of its own. Scored while
it trains, it would be none: the loss would stay at ln 2 and pull without an anchor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.alignment.logprobs import sequence_logprobs
from minillm.alignment.scored import Scored
from minillm.data.batches import starts
from minillm.data.chat import Encoded, encode_chat, encode_prompt
from minillm.data.examples import Examples
from minillm.data.messages import Message, conversation
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require
from minillm.model import GPT

Row = tuple[Encoded, Encoded]  # chosen and rejected


def encode_preferences(
    tokenizer: Tokenizer,
    triples: Iterable[tuple[str | Sequence[Message], str, str]],
    template: Template = CHATML,
) -> list[Row]:
    """Encode (prompt, chosen, rejected); the responses' words are the targets.

    Args:
        tokenizer: the model's own.
        triples: the prompt is what a user says, or a conversation that ends with the
            user's turn.
        template: the marks.

    Raises:
        ValueError: as ``encode_chat``; two responses that are equal and teach nothing.

    >>> ((chosen, rejected),) = encode_preferences(
    ...     Tokenizer(merges=()), [("2+2", "4", "five")])
    >>> sum(chosen.mask), sum(rejected.mask)   # the end of the turn is a target, too
    (2, 5)
    """
    rows = []
    for prompt, chosen, rejected in triples:
        differ, remedy = chosen != rejected, "leave ties out"
        require(differ, "rejected", rejected, "another text than chosen", remedy)
        said = (chosen, rejected)
        rows.append(
            tuple(encode_response(tokenizer, prompt, s, template) for s in said)
        )
    return rows


def encode_response(
    tokenizer: Tokenizer,
    prompt: str | Sequence[Message],
    response: str,
    template: Template = CHATML,
) -> Encoded:
    """A prompt with its response, of which only the response is a target.

    >>> ids, mask = encode_response(Tokenizer(merges=()), "2+2", "4")
    >>> len(ids), sum(mask)
    (25, 2)
    """
    chat = conversation(prompt) if isinstance(prompt, str) else [*prompt]
    seen = len(encode_prompt(tokenizer, chat, template))
    messages = [*chat, Message("assistant", response)]
    ids, mask = encode_chat(tokenizer, messages, template)
    return Encoded(ids, [False] * seen + mask[seen:])


@dataclass(frozen=True)
class PairBatch:
    """Rows of tokens, all chosen first; the reference's log-probs, if there is one."""

    tokens: Int[Tensor, "2B T"]
    mask: Bool[Tensor, "2B T"]
    ref: Float[Tensor, " 2B"] | None = None

    def score(self, model: GPT) -> Scored:
        """One forward pass over both halves."""
        tokens, mask = self.tokens, self.mask
        logprobs = sequence_logprobs(model(tokens), tokens, mask)
        return Scored(logprobs, mask.sum(1), self.ref)


@dataclass(frozen=True, eq=False)
class PreferencePairs:
    """``pairs[step] -> PairBatch``, a pure function of the step, as ``Examples`` is.

    Args:
        rows: chosen and rejected, as ``encode_preferences`` makes them.
        T: the longest row that the model takes.
        B: pairs in a batch; twice as many rows.
        pad: the id that fills rows up.
        seed: of the order.
        ref: (N, 2) log-probs of the reference, summed; see ``with_reference``.

    Raises:
        ValueError: what ``Examples`` refuses; log-probs of another number of rows.

    >>> row = Encoded([5, 6, 7], [False, True, True]), Encoded([5, 8], [False, True])
    >>> PreferencePairs([row], T=16, B=1, pad=0)[0].tokens
    tensor([[5, 6, 7],
            [5, 8, 0]])
    """

    rows: Sequence[Row]
    T: int
    B: int
    pad: int
    seed: int = 0
    ref: Float[Tensor, "N 2"] | None = None

    def __post_init__(self) -> None:
        Examples(self.flat, self.T, self.B, self.pad, self.seed)  # its doors are ours
        shape, need = (len(self.rows), 2), "one for each row"
        fits = self.ref is None or tuple(self.ref.shape) == shape
        require(fits, "ref", self.ref, f"of shape {shape}, {need}", "score them again")

    @cached_property
    def flat(self) -> list[Encoded]:
        """All rows: chosen and rejected of the first pair, of the second, and so on."""
        return [Encoded(*row) for pair in self.rows for row in pair]

    def indices(self, step: int) -> list[int]:
        """Which pairs are in a batch; each once an epoch, in an order of its own."""
        n, first = len(self.rows), step * self.B
        places = (divmod(i, n) for i in range(first, first + self.B))
        return [int(starts(n, 1, 0, self.seed, e)[place]) for e, place in places]

    def __getitem__(self, step: int) -> PairBatch:
        which = self.indices(step)
        rows = [self.flat[2 * i + side] for side in (0, 1) for i in which]
        ref = None if self.ref is None else self.ref[which].T.flatten()
        return PairBatch(*stack(rows, self.pad), ref)

    def with_reference(self, model: GPT) -> "PreferencePairs":
        """The same pairs with the log-probs of a reference, scored once, now."""
        logprobs = reference_logprobs(model, self.flat, self.pad)
        return replace(self, ref=logprobs.view(-1, 2))


def stack(rows: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of rows, padded on the right.

    >>> stack([Encoded([5, 6], [False, True]), Encoded([7], [False])], pad=0)[0]
    tensor([[5, 6],
            [7, 0]])
    """
    ids = [torch.tensor(row.ids) for row in rows]
    masks = [torch.tensor(row.mask) for row in rows]
    return pad_sequence(ids, True, pad), pad_sequence(masks, True, False)


@torch.no_grad()
def reference_logprobs(
    model: GPT, rows: Sequence[Encoded], pad: int, B: int = 64
) -> Float[Tensor, " N"]:
    """Summed log-probs of responses, without gradient and without dropout.

    Args:
        model: the reference; left in the mode it was in.
        rows: ids with masks.
        pad: the id that fills rows up.
        B: rows at a time.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> reference_logprobs(model, [Encoded([5, 6], [False, True])], pad=0).shape
    torch.Size([1])
    """
    was_training, device = model.training, model.embed_tokens.weight.device
    model.eval()
    try:
        parts = []
        for first in range(0, len(rows), B):
            tokens, mask = (t.to(device) for t in stack(rows[first : first + B], pad))
            parts.append(sequence_logprobs(model(tokens), tokens, mask))
    finally:
        model.train(was_training)
    return torch.cat(parts)
