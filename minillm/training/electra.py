r"""Replaced-token detection: a model that looks for what is false.

A small generator fills gaps by drawing from its own distribution, and the model that is
wanted says of each position whether it was replaced, a choice between two:

.. math:: L_D = -\frac{1}{|S|} \sum_{t \in S} \ln \sigma(\pm D_t)

A gap that was filled rightly was not replaced. Every position teaches, not only gaps.

Source: Clark et al. 2020, section 2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minillm.errors import require
from minillm.model import GPT, GPTConfig
from minillm.training.losses import IGNORE
from minillm.training.objectives import replaced_token_loss


class Electra(nn.Module):
    """A generator that fills gaps, and a discriminator that looks for what it filled.

    Args:
        generator: shape of the small masked model; an encoder.
        discriminator: shape of the model that is wanted; an encoder. Its head is one
            number a position: positive for "replaced".

    Raises:
        ValueError: a causal shape.

    Source: Clark et al. 2020, section 2. Differs from the paper: no embedding is
    shared, so no weight is needed that balances the two losses.
    """

    def __init__(self, generator: GPTConfig, discriminator: GPTConfig):
        super().__init__()
        for name, config in (
            ("generator", generator),
            ("discriminator", discriminator),
        ):
            remedy = "build it with causal=False: both look in both directions"
            require(not config.causal, name, config, "an encoder", remedy)
        self.generator, self.discriminator = GPT(generator), GPT(discriminator)
        self.discriminator.lm_head = nn.Linear(discriminator.n_embd, 1, bias=False)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """For each position, the logit of "this was replaced"."""
        return self.discriminator(tokens).squeeze(-1)

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        inputs: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        only_gaps: bool = False,
    ) -> Float[Tensor, ""]:
        """The generator's loss of filling the gaps plus the discriminator's.

        The generator learns from the true tokens alone, not from deceiving.

        Args:
            tokens: the text.
            inputs, targets: what ``mask_tokens`` makes of it.
            only_gaps: score the discriminator only where there were gaps.
        """
        gaps = targets != IGNORE
        logits = self.generator.lm_head(self.generator.hidden(inputs)[gaps])
        corrupted = tokens.clone()
        with torch.no_grad():
            corrupted[gaps] = logits.softmax(-1).multinomial(1).squeeze(-1)
        scored = gaps if only_gaps else torch.ones_like(gaps)
        detect = replaced_token_loss(self(corrupted), tokens, corrupted, scored)
        return F.cross_entropy(logits, targets[gaps]) + detect
