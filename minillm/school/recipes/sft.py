"""The assistant of the notebooks: the base model, fine-tuned on good responses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minillm.data import Tokenizer
from minillm.data.examples import Examples
from minillm.finetuning import finetune, sft_config, sft_examples
from minillm.model import GPT
from minillm.school.recipes.base import Base
from minillm.school.tiny_sft import EXAMPLES, RATES
from minillm.world import World, WorldConfig
from minillm.world.instructions import instructions

BASE = Base()


@dataclass(frozen=True)
class Sft:
    """What the assistant has learned from; the settings are those of the tour (a test
    compares what is not taken from there).

    Args:
        base: the recipe of the model that it begins with, which gets the same seed.
        examples: instructions with good responses.
        epochs: passes over them.
        B: rows in a batch.
        seed: of the order.
    """

    base: Base = BASE
    examples: int = EXAMPLES
    epochs: float = 1
    B: int = 32
    seed: int = 0

    @property
    def world(self) -> WorldConfig:
        """That the documents speak of."""
        return self.base.world

    def train(self, load: Callable, progress: bool) -> tuple[GPT, Tokenizer]:
        """Fetch the base model and let it imitate.

        Args:
            load: (recipe, progress) -> the model that the zoo has of it.
            progress: show bars.
        """
        base = load(replace(self.base, seed=self.seed), progress)
        torch.manual_seed(self.seed)
        lore = World(self.world).lore
        good = [(i.prompt, i.good) for i in instructions(lore, self.examples)]
        examples = Examples(
            sft_examples(base.tokenizer, good),
            T=self.base.T,
            B=self.B,
            pad=base.tokenizer.pad,
            seed=self.seed,
        )
        config = sft_config(examples, self.epochs, **RATES)
        finetune(base.model, examples, config, progress=progress)
        return base.model, base.tokenizer
