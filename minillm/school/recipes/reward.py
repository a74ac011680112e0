"""The reward model of the notebooks: the assistant, with a head that judges."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import opening_ids
from minillm.data import Tokenizer
from minillm.model import GPT, GPTConfig
from minillm.school.recipes.sft import Sft
from minillm.school.tiny_reward import PAIRS, reward_model
from minillm.world import World, WorldConfig

SFT = Sft()


@dataclass(frozen=True)
class Reward:
    """What the reward model has learned from; the settings are those of the tour, but
    that annotators were not asked about refusals where there is an answer: what PPO
    makes of that gap is a lesson of its own.

    Args:
        sft: the recipe of its trunk, which gets the same seed and stays as it is.
        pairs: verdicts of annotators.
        seed: of the trunk; fitting the head draws no random number.
    """

    sft: Sft = SFT
    pairs: int = PAIRS
    seed: int = 0

    @property
    def world(self) -> WorldConfig:
        """That the responses speak of."""
        return self.sft.world

    def train(self, load: Callable, progress: bool) -> tuple[RewardModel, Tokenizer]:
        """Fetch the assistant and fit a head to verdicts.

        Args:
            load: (recipe, progress) -> the model that the zoo has of it.
            progress: show bars.
        """
        trunk = load(replace(self.sft, seed=self.seed), progress)
        parts = (trunk.tokenizer, trunk.model, World(self.world).lore)
        return reward_model(*parts, self.pairs, progress), trunk.tokenizer

    @staticmethod
    def blank(config: GPTConfig, tokenizer: Tokenizer) -> RewardModel:
        """A model that is ready to take the weights of a file."""
        return RewardModel(GPT(config), opening_ids(tokenizer))
