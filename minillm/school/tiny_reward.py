"""The tour's reward model: what annotators prefer, learned from their verdicts.

Annotators are noisy readers of the true reward. A model that learns from their choices
is compared with both: with them it cannot agree more often than their noise permits,
and with the truth it may.
"""

from dataclasses import asdict

from minillm.alignment.held_out import held_out_verdicts
from minillm.alignment.reward_fitting import fit_head
from minillm.alignment.reward_judging import evaluate_reward_model
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import encode_pairs, opening_ids
from minillm.data import Tokenizer
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tinytext import TinyText
from minillm.world.instructions import preferences
from minillm.world.lore import Lore
from minillm.world.preferences import Annotator

PAIRS, JUDGED = 16_000, 1200  # to learn from, and to be measured with
ANNOTATOR = Annotator()


def reward_model(
    tokenizer: Tokenizer, assistant: GPT, lore: Lore, pairs: int, progress: bool = False
) -> RewardModel:
    """A head on the assistant, fitted to verdicts; the assistant stays as it is.

    Args:
        tokenizer: the assistant's.
        assistant: a fine-tuned model, which becomes the trunk.
        lore: of the world that it speaks of.
        pairs: how many verdicts.
        progress: show a bar.
    """
    model = RewardModel(assistant, opening_ids(tokenizer))
    verdicts = preferences(lore, pairs, ANNOTATOR)
    told_apart = [v for v in verdicts if v[1].chosen != v[1].rejected]
    fit_head(model, encode_pairs(tokenizer, told_apart), progress=progress)
    return model.eval()


def teach_judge(run: Run, text: TinyText, assistant: GPT) -> RewardModel:
    """Fit a reward model to verdicts; compare it with annotators and with the truth."""
    lore = text.world.lore
    with run.stage("reward", f"{PAIRS:,} verdicts, a head on the assistant"):
        judge = reward_model(text.tokenizer, assistant, lore, PAIRS, progress=True)
        verdicts = list(held_out_verdicts(lore, JUDGED, ANNOTATOR))
        found = evaluate_reward_model(judge, text.tokenizer, verdicts, ANNOTATOR)
    ceiling, agreed = f"{found.ceiling:.0%} at most", f"{found.agreement:.0%}"
    run.add("reward", "agrees with annotators", ceiling, agreed)
    run.add("reward", "orders pairs as the truth does", "100%", f"{found.accuracy:.0%}")
    run.results["reward model"] = asdict(found)
    return judge
