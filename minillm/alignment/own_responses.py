"""What the policy says now, as pairs: respond twice, have it judged, keep the order.

Pairs from a file compare what *some* model said. The policy that learns from them moves
on, and soon its own responses are none that anybody has compared. Fresh pairs need a
sampler and a judge: annotators, a reward model, another language model (``judge``).

Two mistakes are made where pairs are made:

- *Decoded and encoded again*, a response may become other tokens, and one that was cut
  off gets an end that it never had. So the sampled tokens themselves go into the batch.
- *Two temperatures.* If one response of each pair is sampled colder, the judge compares
  temperatures, and the colder one wins. Both are drawn alike here, and ties, which are
  no preference, are left out; counted for the second, they would be a position bias.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from minillm.alignment.kl import kl_k1
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.preference_data import Row, encode_response
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.data.chat import Encoded, encode_prompt, stop_token
from minillm.data.messages import conversation
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.model import GPT, Sampling
from minillm.world.instructions import Instruction
from minillm.world.questions import Question

Compare = Callable[[Question, str, str], str]  # "first", "second" or "tie"


@dataclass(frozen=True)
class Ask:
    """How the policy is asked.

    Args:
        max_new_tokens: of a response.
        sampling: how tokens are drawn, the same for all responses.
        seed: of the draws.
        B: instructions in a batch.
    """

    max_new_tokens: int = 40
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    B: int = 16

    def __post_init__(self) -> None:
        require_count(max_new_tokens=self.max_new_tokens, B=self.B)

    def dice(self) -> torch.Generator:
        """The source of randomness, from its beginning."""
        return torch.Generator().manual_seed(self.seed)


def ask_model(
    model: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    ask: Ask,
    dice: torch.Generator,
    copies: int = 1,
) -> Rollouts:
    """The model's responses to each instruction, ``copies`` of them in a row."""
    prompts = [encode_prompt(tokenizer, conversation(i.prompt)) for i in instructions]
    rows = [prompt for prompt in prompts for _ in range(copies)]
    marks = (stop_token(tokenizer), tokenizer.pad)
    return sample_rollouts(model, rows, ask.max_new_tokens, ask.sampling, *marks, dice)


def as_rows(rollouts: Rollouts) -> list[Encoded]:
    """The sampled tokens themselves, without the padding; actions are the targets.

    >>> tokens = torch.tensor([[0, 5, 6, 9, 0]])
    >>> acts = torch.tensor([[False, False, True, True, False]])
    >>> real = acts | (tokens == 5)
    >>> as_rows(Rollouts(tokens, real, acts, torch.zeros(1, 4)))
    [Encoded(ids=[5, 6, 9], mask=[False, True, True])]
    """
    parts = zip(rollouts.tokens, rollouts.real, rollouts.actions, strict=True)
    return [
        Encoded(tokens[real].tolist(), acts[real].tolist())
        for tokens, real, acts in parts
    ]


def judged_pairs(
    model: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    judge: Compare,
    ask: Ask,
    dice: torch.Generator,
) -> list[Row]:
    """Respond twice to each instruction; keep (chosen, rejected) where there is one.

    Args:
        model: the policy; not changed.
        tokenizer: its own.
        instructions: what to respond to.
        judge: (question, first, second) -> "first", "second" or "tie".
        ask, dice: how, and from which random numbers.

    Returns:
        at most one row for each instruction; none where the verdict is a tie or the
        responses are equal.
    """
    rollouts = ask_model(model, tokenizer, instructions, ask, dice, copies=2)
    rows, texts, pairs = as_rows(rollouts), rollouts.texts(tokenizer), []
    for i, asked in enumerate(instructions):
        a, b = 2 * i, 2 * i + 1
        if texts[a] == texts[b]:
            continue
        verdict = judge(asked.question, texts[a], texts[b])
        if verdict != "tie":
            better = (a, b) if verdict == "first" else (b, a)
            pairs.append(tuple(rows[k] for k in better))
    return pairs


def against_own(
    tokenizer: Tokenizer, instructions: Sequence[Instruction], own: Sequence[Encoded]
) -> list[Row]:
    """The good response to each instruction, chosen over what the model said.

    Where it said the same, cut off or not, there is nothing to learn and no row.
    """
    rows = []
    for asked, said in zip(instructions, own, strict=True):
        good = encode_response(tokenizer, asked.prompt, asked.good)
        # The template's line break behind the end of a turn is never sampled.
        if good.ids[: len(said.ids)] != said.ids:
            rows.append((good, said))
    return rows


@torch.no_grad()
def sampled_kl(
    model: GPT,
    ref: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    ask: Ask | None = None,
) -> float:
    """KL of the policy to the reference, in nats per response, by sampling.

    The mean log-ratio over responses of the *policy*. Over the responses of a data set
    it would be no KL: there, the chosen ones are meant to rise.

    Args:
        model: the policy.
        ref: the reference, which must not share weights with it.
        tokenizer: of both.
        instructions: what to respond to.
        ask: how; the same seed gives the same draws.
    """
    require_other(model, ref)
    ask = ask or Ask()
    rollouts = ask_model(model, tokenizer, instructions, ask, ask.dice())
    other = model_logprobs(ref.eval(), rollouts.tokens, rollouts.real, ask.sampling)
    acts = rollouts.actions[:, 1:]
    ratios = kl_k1(rollouts.logprobs, other).where(acts, 0.0)
    return ratios.sum(1).mean().item()


def frozen_copy(model: GPT) -> GPT:
    """A reference: the model as it is now, which no training reaches.

    >>> from minillm.model import GPTConfig
    >>> ref = frozen_copy(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> any(p.requires_grad for p in ref.parameters())
    False
    """
    return copy.deepcopy(model).eval().requires_grad_(False)


def require_other(model: GPT, ref: GPT) -> None:
    """Require that the reference shares no trainable weight with the policy.

    Where the reference is asked during training, one that moves along makes each
    log-ratio zero: the loss stays at ln 2, and nothing holds the policy any more.

    Raises:
        ValueError: they share one.
    """
    own = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    shared = any(p.data_ptr() in own for p in ref.parameters())
    remedy = "pass frozen_copy(model), made before training"
    require(not shared, "ref", type(ref).__name__, "a model of its own", remedy)
