"""The reward model of tour and zoo: what annotators prefer, from their verdicts.

Annotators are noisy readers of the true reward. A model that learns from their choices
is compared with both: with them it cannot agree more often than their noise permits,
and with the truth it may.
"""

from minillm.alignment.reward_fitting import fit_head
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import encode_pairs, opening_ids
from minillm.data import Tokenizer
from minillm.model import GPT
from minillm.world.instructions import preferences
from minillm.world.lore import Lore
from minillm.world.preferences import Annotator

PAIRS = 16_000
ANNOTATOR = Annotator()


def reward_model(
    tokenizer: Tokenizer,
    assistant: GPT,
    lore: Lore,
    pairs: int,
    progress: bool = False,
) -> RewardModel:
    """A head on the assistant, fitted to verdicts; the assistant stays as it is.

    Args:
        tokenizer: the assistant's.
        assistant: a fine-tuned model, which becomes the trunk.
        lore: of the world that it speaks of.
        pairs: how many verdicts of the world's own.
        progress: show a bar.
    """
    model = RewardModel(assistant, opening_ids(tokenizer))
    verdicts = preferences(lore, pairs, ANNOTATOR)
    told_apart = [v for v in verdicts if v[1].chosen != v[1].rejected]
    fit_head(model, encode_pairs(tokenizer, told_apart), progress=progress)
    return model.eval()
