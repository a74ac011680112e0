"""The tour's judge: a reward model that has read more than the assistant it judges.

**What its trunk does not know, it cannot judge.** After fine-tuning the assistant knows
the people it was most often asked about, and hardly who does not exist or what sums
come to. So a copy of it reads further instructions, as many of each topic, before a
head is fitted to verdicts; the assistant itself stays as it is.

**What nobody has compared, nobody has learned.** The world's pairs hold refusals only
where they are right, so a judge of these alone likes them everywhere, and PPO finds
that out: after some thirty steps the assistant knew nobody any more. So annotators are
also asked about refusals where there is an answer. Half of them begin in any way: if
all were sorry, to be sorry would be learned as the fault. This has a price, and the
tour states it: a head that was told so orders the world's own pairs less well, because
the trunk hardly knows who does not exist. So two heads are fitted to what was read
once: one to the world's pairs, which is measured, and one to all, which judges PPO.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice, zip_longest
from random import Random

import torch

from minillm.alignment.held_out import held_out_verdicts
from minillm.alignment.reward_fitting import fit_features, read_features
from minillm.alignment.reward_judging import evaluate_reward_model
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Verdict, encode_pairs, opening_ids
from minillm.data.examples import Examples
from minillm.finetuning import finetune, sft_config, sft_examples
from minillm.model import GPT
from minillm.school import tiny_reward
from minillm.school.pipeline import Run
from minillm.school.tiny_reward import ANNOTATOR
from minillm.school.tiny_sft import BATCH, EXAMPLES, RATES
from minillm.school.tinytext import TinyText
from minillm.world.asking import one_of
from minillm.world.instructions import Instruction, instructions, preferences
from minillm.world.lore import Lore
from minillm.world.preferences import OPENINGS, SORRY, annotate
from minillm.world.questions import REFUSAL

MORE, FROM = 6_000, 34_000  # instructions that the trunk reads, and how many to choose
REFUSALS = 1_000  # instructions, of which most have an answer
JUDGED = 1200  # verdicts to be measured with


def teach_judge(run: Run, text: TinyText, assistant: GPT) -> RewardModel:
    """Fit heads to verdicts, compare with annotators and with the truth; one judges."""
    lore, pairs, found = text.world.lore, tiny_reward.PAIRS, {}
    doing = f"{MORE:,} more instructions, then {pairs:,} verdicts"
    with run.stage("reward", doing):
        trunk = well_read(text, assistant, run.settings["seed"])
        judge = RewardModel(trunk, opening_ids(text.tokenizer)).eval()
        asked = list(held_out_verdicts(lore, JUDGED, ANNOTATOR))
        verdicts = [*preferences(lore, pairs, ANNOTATOR), *refused(lore, REFUSALS)]
        told_apart = [v for v in verdicts if v[1].chosen != v[1].rejected]
        world = sum(v[1].chosen != v[1].rejected for v in verdicts[:pairs])
        encoded = encode_pairs(text.tokenizer, told_apart)
        sides = read_features(judge, encoded, B=64, progress=True)
        for name, n in {"reward model": world, "judge": len(encoded)}.items():
            fit_features(judge, *(side[:n] for side in sides))
            found[name] = evaluate_reward_model(judge, text.tokenizer, asked, ANNOTATOR)
    first, last = found.values()
    ceiling, agreed = f"{first.ceiling:.0%} at most", f"{first.agreement:.0%}"
    run.add("reward", "agrees with annotators", ceiling, agreed)
    run.add("reward", "orders pairs as the truth does", "100%", f"{first.accuracy:.0%}")
    told = f"{last.accuracy:.0%}"
    run.add("reward", "the same, told of wrong refusals (PPO's)", "100%", told)
    run.results |= {name: asdict(one) for name, one in found.items()}
    return judge


def well_read(text: TinyText, assistant: GPT, seed: int) -> GPT:
    """A copy of the assistant, fine-tuned on instructions that it has not read.

    The stages that follow draw the random numbers that they would draw without it.
    """
    further = islice(instructions(text.world.lore, EXAMPLES + FROM), EXAMPLES, None)
    good = [(i.prompt, i.good) for i in islice(topic_by_topic(further), MORE)]
    encoded = sft_examples(text.tokenizer, good)
    T, pad = assistant.config.context, text.tokenizer.pad
    examples = Examples(encoded, T=T, B=BATCH, pad=pad, seed=seed)
    trunk = copy.deepcopy(assistant)
    with torch.random.fork_rng(devices=[]):
        finetune(trunk, examples, sft_config(examples, epochs=1, **RATES))
    return trunk.eval()


def topic_by_topic(asked: Iterator[Instruction]) -> Iterator[Instruction]:
    """The same instructions in turns, one of each topic that has any left.

    >>> from minillm.world import World
    >>> asked = topic_by_topic(instructions(World().lore, 200))
    >>> len({next(asked).topic for _ in range(6)})
    6
    """
    piles = defaultdict(list)
    for each in asked:
        piles[each.topic].append(each)
    for turn in zip_longest(*piles.values()):
        yield from filter(None, turn)


def refused(lore: Lore, n: int) -> Iterator[Verdict]:
    """Verdicts on good responses beside refusals, to those that have an answer.

    >>> from minillm.world import World
    >>> _, verdict = next(refused(World().lore, 1))
    >>> any(REFUSAL in text for text in (verdict.chosen, verdict.rejected))
    True
    """
    for index, asked in enumerate(instructions(lore, n, "refused")):
        if asked.question.answer is not None:
            seed = f"{lore.config.seed}/refused/{index}"
            dice = Random(f"{seed}/opening").random
            opening = SORRY[0] if dice() < 0.5 else one_of(SORRY + OPENINGS, dice)
            sides = (asked.question, asked.good, f"{opening} {REFUSAL}.")
            yield asked, annotate(*sides, ANNOTATOR, seed)
