"""The tour's reward model: what annotators prefer, learned from their verdicts.

Annotators are noisy readers of the true reward. A model that learns from their choices
is compared with both: with them it cannot agree more often than their noise permits,
and with the truth it may.

What nobody has compared, nobody has learned. The world's pairs hold refusals only where
they are right, so a judge of these alone likes them everywhere, and PPO finds that out:
after some thirty steps the assistant knew nobody any more. So annotators are also asked
about refusals where there is an answer.
"""

from collections.abc import Iterator
from dataclasses import asdict

from minillm.alignment.held_out import held_out_verdicts
from minillm.alignment.reward_fitting import fit_head
from minillm.alignment.reward_judging import evaluate_reward_model
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Verdict, encode_pairs, opening_ids
from minillm.data import Tokenizer
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tinytext import TinyText
from minillm.world.instructions import instructions, preferences
from minillm.world.lore import Lore
from minillm.world.preferences import SORRY, Annotator, annotate
from minillm.world.questions import REFUSAL

PAIRS, JUDGED = 16_000, 1200  # to learn from, and to be measured with
REFUSALS = 2_000  # instructions, of which most have an answer
ANNOTATOR = Annotator()


def reward_model(
    tokenizer: Tokenizer,
    assistant: GPT,
    lore: Lore,
    pairs: int,
    progress: bool = False,
    refusals: int = 0,
) -> RewardModel:
    """A head on the assistant, fitted to verdicts; the assistant stays as it is.

    Args:
        tokenizer: the assistant's.
        assistant: a fine-tuned model, which becomes the trunk.
        lore: of the world that it speaks of.
        pairs: how many verdicts.
        progress: show a bar.
        refusals: how many instructions are refused, to ask annotators about it.
    """
    model = RewardModel(assistant, opening_ids(tokenizer))
    verdicts = [*preferences(lore, pairs, ANNOTATOR), *refused(lore, refusals)]
    told_apart = [v for v in verdicts if v[1].chosen != v[1].rejected]
    fit_head(model, encode_pairs(tokenizer, told_apart), progress=progress)
    return model.eval()


def refused(lore: Lore, n: int) -> Iterator[Verdict]:
    """Verdicts on good responses beside refusals, to those that have an answer.

    >>> from minillm.world import World
    >>> _, verdict = next(refused(World().lore, 1))
    >>> sorted([verdict.chosen, verdict.rejected])[0]
    ' I am sorry: I know nobody of that name.'
    """
    refusal, seed = f"{SORRY[0]} {REFUSAL}.", lore.config.seed
    for index, asked in enumerate(instructions(lore, n, "refused")):
        if asked.question.answer is not None:
            sides = (asked.question, asked.good, refusal)
            yield asked, annotate(*sides, ANNOTATOR, f"{seed}/refused/{index}")


def teach_judge(run: Run, text: TinyText, assistant: GPT) -> RewardModel:
    """Fit a reward model to verdicts; compare it with annotators and with the truth."""
    lore = text.world.lore
    with run.stage("reward", f"{PAIRS:,} verdicts, a head on the assistant"):
        judge = reward_model(text.tokenizer, assistant, lore, PAIRS, True, REFUSALS)
        verdicts = list(held_out_verdicts(lore, JUDGED, ANNOTATOR))
        found = evaluate_reward_model(judge, text.tokenizer, verdicts, ANNOTATOR)
    ceiling, agreed = f"{found.ceiling:.0%} at most", f"{found.agreement:.0%}"
    run.add("reward", "agrees with annotators", ceiling, agreed)
    run.add("reward", "orders pairs as the truth does", "100%", f"{found.accuracy:.0%}")
    run.results["reward model"] = asdict(found)
    return judge
