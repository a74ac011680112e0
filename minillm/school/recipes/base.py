"""The base model of the notebooks: it has read TinyWorld for a minute, once.

The settings are those of the tour, with a number of steps in the place of minutes: a
model that several notebooks speak of must not depend on how fast the machine is. They
are repeated here, and a test compares them: whatever is imported becomes part of the
model's key, and with the tour came its report and pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from minillm.data import Tokenizer
from minillm.data.packed import Rows
from minillm.errors import require_count
from minillm.model import GPT, GPTConfig
from minillm.school.options import TRAINING
from minillm.school.tinytext import tiny_text
from minillm.training import TrainConfig, Trainer
from minillm.world import WorldConfig

DEFAULT = WorldConfig()
CHECKED = 20  # documents with a known price, to see that they fit into a row


@dataclass(frozen=True)
class Base:
    """What the base model is and has read.

    Args:
        steps: of the optimizer; each reads B * T tokens.
        documents: about 18 tokens each, enough to be read only once.
        B, T: rows in a batch, tokens in a row.
        vocab_size: of the tokenizer.
        n_layer, n_head, n_embd: of the model.
        seed: of weights and order; the text is always the same.
        world: that the documents speak of.
    """

    steps: int = 1200
    documents: int = 140_000
    B: int = 16
    T: int = 128
    vocab_size: int = 1024
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    seed: int = 0
    world: WorldConfig = DEFAULT

    def train(self, load: Callable, progress: bool) -> tuple[GPT, Tokenizer]:
        """Write the documents, learn the tokenizer, train the model.

        Args:
            load: what fetches other models of the zoo; this one needs none.
            progress: show bars.
        """
        require_count(steps=self.steps)
        text = tiny_text(
            self.world, self.documents, CHECKED, self.vocab_size, self.T, progress
        )
        torch.manual_seed(self.seed)
        shape = (text.tokenizer.vocab_size, self.n_layer, self.n_head)
        model = GPT(GPTConfig(*shape, n_embd=self.n_embd, context=self.T))
        config = TrainConfig(self.steps, warmup=min(20, self.steps // 5), **TRAINING)
        rows = Rows(text.rows, self.B, self.seed)
        Trainer(model, rows, config, progress=progress).fit()
        return model, text.tokenizer
