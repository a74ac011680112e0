"""Learning from preferences, on trial: what becomes of a policy that learns from pairs?

Chapter 13 and the studies beside it begin with the zoo's fine-tuned model, train it on
verdicts of TinyWorld's annotators, and ask the same of every policy that results:

- what it *says* to instructions that were held out: true reward, share of right and of
  polite responses, length, and how far it is from where it began, in nats per response;
- what it *prefers* in pairs that were held out: whether its log-ratios put the truly
  better response first, whether the one that the annotator chose, and by how much the
  log-probs of both have changed.

Both are needed, for they can disagree: a policy may order all pairs rightly and never
say the better response. Responses are sampled at temperature 1, since it is the policy
that is measured and not its most probable words. Instructions and pairs are the same
for all seeds and methods, and so are the random numbers of the draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment import (
    Ask,
    PreferencePairs,
    encode_preferences,
    frozen_copy,
    kl_k1,
    model_logprobs,
)
from minillm.alignment.own_responses import ask_model
from minillm.alignment.preference_data import reference_logprobs
from minillm.data import Encoded, Tokenizer
from minillm.model import GPT
from minillm.school import zoo
from minillm.school.recipes.sft import Sft
from minillm.world import preferences as world
from minillm.world.asking import Dice, one_of
from minillm.world.instructions import Instruction, instructions
from minillm.world.lore import Lore
from minillm.world.preferences import Annotator, Preference, features, true_reward
from minillm.world.questions import Question, right_answer

Judged = tuple[Instruction, Preference]
ASK = Ask(B=128)  # as many at a time as is fast


def judged(
    lore: Lore,
    n: int,
    annotators: Sequence[Annotator] = (Annotator(),),
    stream: str = "train",
    held_out: bool = False,
) -> list[Judged]:
    """n pairs of different responses, each ordered by one annotator; they take turns.

    Unlike ``world.instructions.preferences`` it can hold instructions out, and it never
    compares a text with itself.

    >>> from minillm.world import World
    >>> ((asked, verdict),) = judged(World().lore, 1, stream="doctest 2")
    >>> verdict.chosen, verdict.rejected
    (' With pleasure: 1.', ' Gladly: 1 !!')
    """
    found = []
    for i, asked in enumerate(instructions(lore, n, f"judged/{stream}", held_out)):
        seed = f"{lore.config.seed}/judged/{stream}/{i}"
        dice = Random(f"{seed}/pair").random
        first = asked.good if dice() < 0.5 else asked.mediocre
        second = first
        while second == first:
            second = _any_response(asked.question, dice)
        turn = annotators[i % len(annotators)]
        found.append((asked, world.annotate(asked.question, first, second, turn, seed)))
    return found


def _any_response(question: Question, dice: Dice) -> str:
    """An opening, an answer or none, an ending: each as it comes."""
    answer = one_of((right_answer(question), "do not ask me"), dice)
    opening = one_of(world.openings(question), dice)
    return f"{opening} {answer}{one_of(world.ENDINGS, dice)}"


@dataclass(frozen=True, eq=False)
class Trial:
    """Where a policy begins, and what it is asked afterwards.

    Args:
        ref: the policy before training, frozen.
        tokenizer, lore: its own, and what is true.
        asked: instructions that were held out.
        pairs: of other held-out instructions, with verdicts.
    """

    ref: GPT
    tokenizer: Tokenizer
    lore: Lore
    asked: Sequence[Instruction]
    pairs: Sequence[Judged]

    def batches(
        self, pairs: Sequence[Judged], seed: int = 0, B: int = 16
    ) -> PreferencePairs:
        """Pairs with verdicts as tokens, to train on."""
        said = [(each.prompt, v.chosen, v.rejected) for each, v in pairs]
        rows, T = encode_preferences(self.tokenizer, said), self.ref.config.context
        return PreferencePairs(rows, T, B, self.tokenizer.pad, seed)

    def measure(self, model: GPT) -> dict[str, float]:
        """All of it, with four decimals."""
        found = self.said(model) | self.preferred(model)
        return {name: round(value, 4) for name, value in found.items()}

    def said(self, model: GPT) -> dict[str, float]:
        """Means over sampled responses; tokens include the one that ends the turn."""
        dice, B, rows = ASK.dice(), ASK.B, []
        for i in range(0, len(self.asked), B):
            some = self.asked[i : i + B]
            rollouts = ask_model(model, self.tokenizer, some, ASK, dice)
            acts = rollouts.actions[:, 1:]
            other = model_logprobs(self.ref, rollouts.tokens, rollouts.real)
            nats = kl_k1(rollouts.logprobs, other).where(acts, 0.0).sum(1)
            counts = acts.sum(1).tolist(), nats.tolist()
            texts = rollouts.texts(self.tokenizer)
            for each, text, *numbers in zip(some, texts, *counts, strict=True):
                f = features(each.question, text)
                seen = true_reward(each.question, text), f["correctness"]
                rows.append((*seen, f["politeness"], *numbers))
        names = ("reward", "right", "polite", "tokens", "kl")
        return dict(zip(names, map(fmean, zip(*rows, strict=True)), strict=True))

    def preferred(self, model: GPT) -> dict[str, float]:
        """How a policy orders the held-out pairs, and how their log-probs changed.

        ``accuracy`` (against the truth) and ``agreement`` (with the annotator) are of
        log-ratios to the reference, DPO's implicit reward; no order counts one half.
        ``ranking`` (against the truth) is of log-probs per token: SimPO's reward, and
        what the policy would rather say. ``margin`` is in nats, before any beta.
        """
        scores, lengths, truth = self.scores(model), self._lengths, self._truth
        chosen, rejected = (scores - self._before).T
        margin, known = chosen - rejected, truth != 0
        ahead = -(scores / lengths).diff(dim=1)[:, 0]
        orders = {
            "accuracy": (margin * truth)[known],
            "agreement": margin,
            "ranking": (ahead * truth)[known],
        }
        sizes = {"chosen_change": chosen, "rejected_change": rejected}
        sizes["margin"] = margin
        found = {name: (x.sign().mean().item() + 1) / 2 for name, x in orders.items()}
        return found | {name: x.mean().item() for name, x in sizes.items()}

    def scores(self, model: GPT) -> Float[Tensor, "N 2"]:
        """Log-probs of the held-out pairs, chosen and rejected, in nats."""
        return reference_logprobs(model, self._rows, self.tokenizer.pad).view(-1, 2)

    @cached_property
    def _rows(self) -> list[Encoded]:
        return self.batches(self.pairs).flat

    @cached_property
    def _lengths(self) -> Float[Tensor, "N 2"]:
        return torch.tensor([float(sum(row.mask)) for row in self._rows]).view(-1, 2)

    @cached_property
    def _before(self) -> Float[Tensor, "N 2"]:
        return self.scores(self.ref)

    @cached_property
    def _truth(self) -> Float[Tensor, " N"]:
        """By how much the chosen response is truly better."""
        told = [(v.question, v.chosen, v.rejected) for _, v in self.pairs]
        better = [true_reward(q, a) - true_reward(q, b) for q, a, b in told]
        return torch.tensor(better)


def begin(seed: int = 0, asked: int = 512, pairs: int = 300) -> tuple[GPT, Trial]:
    """The fine-tuned model of the zoo, and its trial.

    Args:
        seed: of the model; the trial asks all of them the same.
        asked, pairs: how many held-out instructions and pairs.
    """
    found = zoo.load(Sft(), seed=seed, progress=False)
    lore = found.world.lore
    questions = list(instructions(lore, asked, "trial", held_out=True))
    compared = judged(lore, pairs, stream="trial", held_out=True)
    ref = frozen_copy(found.model)
    return found.model, Trial(ref, found.tokenizer, lore, questions, compared)
