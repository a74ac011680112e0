"""From verdicts to batches: pairs of conversations, and what a model gives to both.

An annotator orders two responses, or ranks several. Either becomes pairs (chosen,
rejected) of token ids, in which the prompt stands twice: each response is scored with
all that led to it.
"""

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.alignment.reward_model import RewardModel
from minillm.data.chat import encode_chat
from minillm.data.messages import conversation
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require
from minillm.world.instructions import Instruction
from minillm.world.preferences import Preference

Verdict = tuple[Instruction, Preference]


class Pair(NamedTuple):
    """Two conversations as ids, each up to the token that ends the response."""

    chosen: list[int]
    rejected: list[int]


def response_ids(
    tokenizer: Tokenizer, prompt: str, response: str, template: Template = CHATML
) -> list[int]:
    """A prompt with a response, up to the mark that closes the turn: what is scored.

    A policy stops with that mark, so its rollouts end there, and the reward is read
    there. What the template puts behind it (a line break) would be another last token,
    one that no rollout has.

    >>> tokenizer = Tokenizer(merges=())
    >>> tokenizer.decode(response_ids(tokenizer, "hi", "yo"))[-12:]
    'yo<|im_end|>'
    """
    ids, mask = encode_chat(tokenizer, conversation(prompt, response), template)
    return ids[: max(i for i, target in enumerate(mask) if target) + 1]


def opening_ids(tokenizer: Tokenizer, template: Template = CHATML) -> list[int]:
    """The ids that open the assistant's turn: behind the last of them it speaks.

    >>> tokenizer = Tokenizer(merges=())
    >>> tokenizer.decode(opening_ids(tokenizer))
    '<|im_start|>assistant\\n'
    """
    return tokenizer.encode(template.assistant.opening, template.special_names)


def encode_pairs(
    tokenizer: Tokenizer, verdicts: Iterable[Verdict], template: Template = CHATML
) -> list[Pair]:
    """Encode what an annotator ordered.

    >>> from minillm.world import World
    >>> from minillm.world.instructions import preferences
    >>> from minillm.world.preferences import Annotator
    >>> verdicts = list(preferences(World().lore, 2, Annotator()))
    >>> len(encode_pairs(Tokenizer(merges=()), verdicts))
    2
    """

    def encode(prompt: str, response: str) -> list[int]:
        return response_ids(tokenizer, prompt, response, template)

    return [
        Pair(encode(asked.prompt, p.chosen), encode(asked.prompt, p.rejected))
        for asked, p in verdicts
    ]


def ranking_to_pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """All pairs (better, worse) that a ranking of K responses holds.

    K responses give up to K (K - 1) / 2 pairs. They belong in one batch: spread over an
    epoch, each response would be learned K - 1 times. Equals make no pair: to call one
    of them chosen would teach a difference that nobody saw.

    Args:
        ranks: of each response; 1 is the best.

    Returns:
        places in ``ranks``.

    Raises:
        ValueError: a rank that is no number.

    Source: Ouyang et al. 2022, section 3.5.

    >>> ranking_to_pairs([2, 1, 2])   # the second is better than both others
    [(1, 0), (1, 2)]
    """
    numbers, remedy = all(r == r for r in ranks), "leave out what was not ranked"
    require(numbers, "ranks", list(ranks), "numbers", remedy)
    places = permutations(range(len(ranks)), 2)
    return [(a, b) for a, b in places if ranks[a] < ranks[b]]


def pad_right(
    rows: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Stack rows of unequal lengths, all from the first column: tokens and mask.

    >>> pad_right([[5, 6], [7]])[1]
    tensor([[ True,  True],
            [ True, False]])
    """
    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ones = [torch.ones_like(row, dtype=torch.bool) for row in tensors]
    return pad_sequence(tensors, True, pad), pad_sequence(ones, True, False)


def score_pairs(
    model: RewardModel, batch: Sequence[Pair]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Rewards of the chosen and of the rejected, in one pass and with a gradient.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> chosen, rejected = score_pairs(model, [Pair([1, 2], [1, 2])])
    >>> bool(chosen == rejected)
    True
    """
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    chosen, rejected = model(*pad_right(rows)).chunk(2)
    return chosen, rejected
