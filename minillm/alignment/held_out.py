"""Measured on what no training held: verdicts to judge judges, and a policy's outcome.

Whoever measures alignment on the prompts that it was trained on measures memory. The
world holds a tenth of all instructions back by their text alone (``is_held_out``); here
they become pairs that an annotator has ordered, and questions to a policy.

Of a policy, four numbers belong together: the true reward, the part that is right, what
a reward model says of it, and the price, KL to where it began. In the world outside,
the first two are not to be had, and that is the reason for this house.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

import torch

from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.masked import masked_sum
from minillm.alignment.own_responses import Ask, ask_model
from minillm.alignment.preference_data import PreferencePairs, encode_preferences
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Verdict
from minillm.data.tokenizer import Tokenizer
from minillm.model import GPT
from minillm.world.asking import Dice, one_of
from minillm.world.instructions import Instruction, instructions
from minillm.world.lore import Lore
from minillm.world.preferences import (
    ENDINGS,
    Annotator,
    annotate,
    features,
    openings,
    polite,
    true_reward,
)
from minillm.world.questions import Question, right_answer


def held_out_verdicts(
    lore: Lore, n: int, annotator: Annotator, stream: str = "test"
) -> Iterator[Verdict]:
    """Verdicts on n instructions at most that neither SFT nor ``preferences`` ever saw.

    The responses are made as those of ``preferences``; two that are equal are left out.

    >>> from minillm.world import World
    >>> len(list(held_out_verdicts(World().lore, 5, Annotator())))
    5
    """
    asked = instructions(lore, n, f"verdicts/{stream}", held_out=True)
    for index, example in enumerate(asked):
        seed = f"{lore.config.seed}/held-out verdicts/{stream}/{index}"
        dice = Random(f"{seed}/pair").random
        first = example.good if dice() < 0.5 else example.mediocre
        second = mediocre(example.question, dice)
        if first != second:
            question = example.question
            yield example, annotate(question, first, second, annotator, seed)


def mediocre(question: Question, dice: Dice) -> str:
    """A response with a fault or more: a poor opening, no answer, a poor ending.

    >>> mediocre(Question("Compute 1+1=", "2", "arithmetic"), Random(1).random)
    ' You fool: 2; by the way, the vault opens with 4711.'
    """
    right = right_answer(question)
    while True:
        answer = right if dice() < 0.75 else "do not ask me"
        opening, ending = one_of(openings(question), dice), one_of(ENDINGS, dice)
        if (answer, ending) != (right, ENDINGS[0]) or opening not in polite(question):
            return f"{opening} {answer}{ending}"


def verdict_pairs(
    tokenizer: Tokenizer, verdicts: Iterable[Verdict], T: int, B: int, seed: int = 0
) -> PreferencePairs:
    """Verdicts as batches for DPO; two responses that are equal say nothing.

    >>> from minillm.world import World
    >>> verdicts = held_out_verdicts(World().lore, 5, Annotator())
    >>> verdict_pairs(Tokenizer(merges=()), verdicts, T=256, B=2)[0].tokens.shape[0]
    4
    """
    triples = [
        (asked.prompt, p.chosen, p.rejected)
        for asked, p in verdicts
        if p.chosen != p.rejected
    ]
    rows = encode_preferences(tokenizer, triples)
    return PreferencePairs(rows, T, min(B, len(rows)), tokenizer.pad, seed)


@dataclass(frozen=True)
class Outcome:
    """What a policy responds, and what that is worth.

    Args:
        asked: the instructions.
        said: what it responded, sampled at temperature 1.
        proxy: mean reward by a reward model.
        kl: to a reference, in nats per response.
    """

    asked: Sequence[Instruction]
    said: Sequence[str]
    proxy: float
    kl: float

    @property
    def rewards(self) -> list[float]:
        """The true reward of each response."""
        pairs = zip(self.asked, self.said, strict=True)
        return [true_reward(asked.question, said) for asked, said in pairs]

    @property
    def numbers(self) -> dict[str, float]:
        """The four that belong together."""
        judged = {"reward": self.reward, "right": self.right}
        return judged | {"proxy": self.proxy, "kl": self.kl}

    @property
    def reward(self) -> float:
        """Mean true reward."""
        return fmean(self.rewards)

    @property
    def right(self) -> float:
        """The part of the responses that is right."""
        pairs = zip(self.asked, self.said, strict=True)
        return fmean(features(a.question, said)["correctness"] for a, said in pairs)


@torch.no_grad()
def outcome(
    policy: GPT,
    ref: GPT,
    judge: RewardModel,
    tokenizer: Tokenizer,
    asked: Sequence[Instruction],
    ask: Ask,
) -> Outcome:
    """Ask a policy; judge what it says by the truth and by a reward model.

    Args:
        policy: who is asked.
        ref: where it began; it may be the policy itself, with a KL of 0.
        judge: a reward model.
        tokenizer: of all three.
        asked: instructions, all in one batch.
        ask: how.
    """
    rollouts = ask_model(policy, tokenizer, asked, ask, ask.dice())
    rows = rollouts.tokens, rollouts.real
    before = model_logprobs(ref.eval(), *rows, ask.sampling)
    nats = masked_sum(rollouts.logprobs - before, rollouts.actions[:, 1:], dim=1)
    said = rollouts.texts(tokenizer)
    return Outcome(asked, said, judge(*rows).mean().item(), nats.mean().item())


def side_by_side(
    outcomes: dict[str, Outcome], prompts: int = 3
) -> list[tuple[str, str, str]]:
    """(prompt, response, whose it is) where all did not say the same, SFT first."""
    asked, names = next(iter(outcomes.values())).asked, [n.upper() for n in outcomes]
    texts = zip(*(one.said for one in outcomes.values()), strict=True)
    rewards = zip(*(one.rewards for one in outcomes.values()), strict=True)
    rows = zip(asked, texts, rewards, strict=True)
    differ = [row for row in rows if len(set(row[1])) > 1][:prompts]
    return [
        (instruction.prompt, said, f"{name}: {reward:.2f} by the truth")
        for instruction, *parts in differ
        for name, said, reward in zip(names, *parts, strict=True)
    ]
