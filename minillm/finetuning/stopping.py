r"""When to stop: the loss on held-out examples turns up while that on others falls.

A model that sees the same few examples again and again stops learning what they have in
common and learns them by heart. On the examples themselves that looks like progress;
the gap tells,

.. math:: gap = L_{held\ out} - L_{train}

both measured on the same weights. So look every few steps, keep a copy of the best
weights, and stop when ``patience`` looks in a row have brought nothing. The loss at the
best look flatters a little, because it was chosen: report one of a third set.

Source: Prechelt 1998, Early Stopping - But When? Differs from its UP: that counts looks
in a row which are worse than the look before, where ``patience`` counts those which are
no better than the best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from minillm.data.examples import Examples
from minillm.errors import require, require_count
from minillm.model import GPT
from minillm.model.layers import at_least_float32
from minillm.training import Trainer, next_token_loss
from minillm.training.losses import count_targets


@dataclass(frozen=True)
class StoppingRule:
    """Which look was the best so far, and whether to look on.

    Args:
        patience: looks in a row that may bring nothing.
        min_delta: nats by which a loss must be below the best to be something.

    Raises:
        ValueError: a patience that is no count, a min_delta that is not 0 or more.

    >>> rule, losses = StoppingRule(patience=2), [3.0, 1.0, 2.0, 1.0]
    >>> rule.best(losses), rule.stops(losses), rule.stops(losses[:3])
    (1, True, False)
    """

    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        require_count(patience=self.patience)
        require(self.min_delta >= 0, "min_delta", self.min_delta, "0 or more", "try 0")

    def best(self, losses: Sequence[float]) -> int:
        """The place of the last loss that was an improvement; the first one always is.

        Raises:
            ValueError: no loss, or one that is not finite.
        """
        finite = len(losses) > 0 and all(map(math.isfinite, losses))
        require(finite, "losses", losses, "finite, at least one", "lower the rates")
        best = 0
        for i, loss in enumerate(losses):
            if loss < losses[best] - self.min_delta:
                best = i
        return best

    def stops(self, losses: Sequence[float]) -> bool:
        """Whether the best is ``patience`` looks ago."""
        return len(losses) - 1 - self.best(losses) >= self.patience


@dataclass(frozen=True)
class Look:
    """Losses of the same weights, in nats a target, after so many steps.

    >>> Look(step=10, train=1.0, held_out=1.5).gap
    0.5
    """

    step: int
    train: float
    held_out: float

    @property
    def gap(self) -> float:
        """How much harder the examples are that were not learned from."""
        return self.held_out - self.train


@torch.no_grad()
def mean_loss(model: GPT, examples: Examples) -> float:
    """Nats a target over all examples, each once; the model is left in its mode.

    >>> from minillm.data.chat import Encoded
    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16))
    >>> pair = [Encoded([5, 6, 7], [False, True, True])]
    >>> mean_loss(model, Examples(pair, T=8, B=1, pad=0)) > 0
    True
    """
    nats, n, was_training = 0.0, 0, model.training
    model.eval()
    for start in range(0, len(examples.encoded), examples.B):
        rows = examples.encoded[start : start + examples.B]
        tokens, mask = replace(examples, encoded=rows, B=len(rows))[0]
        logits = model(tokens.to(model.embed_tokens.weight.device)).cpu()
        targets = count_targets(tokens, mask)
        # A mean of means would count the targets of short rows more than others.
        nats += targets * next_token_loss(at_least_float32(logits), tokens, mask).item()
        n += targets
    model.train(was_training)
    return nats / n


def fit_to_best(
    trainer: Trainer, held_out: Examples, rule: StoppingRule, every: int = 10
) -> list[Look]:
    """Train until the rule stops it; the model then has the weights of the best look.

    Args:
        trainer: of ``Examples``, which are all measured at each look; without an
            ``on_step``, for that is where the looks are taken. A run that goes on
            after an interruption has no memory of its looks. The folder, if there is
            one, ends with the best weights, beside the moments of the last step.
        held_out: examples that are in no batch of the trainer.
        rule: when to stop.
        every: steps between looks; the first is before training, since the weights may
            never be better again.

    Returns:
        the looks; that with the place ``rule.best([look.held_out for look in looks])``
        is the one whose weights are kept.

    Raises:
        ValueError: ``every`` that is no count, a trainer with an ``on_step``, a loss
            that is not finite.
    """
    require_count(every=every)
    require(trainer.on_step is None, "on_step", trainer.on_step, "None", "leave it out")
    model, data, looks, best = trainer.model, (trainer.batches, held_out), [], {}

    def look(trainer: Trainer) -> None:
        if trainer.step % every == 0 or trainer.step == trainer.config.steps:
            looks.append(Look(trainer.step, *(mean_loss(model, x) for x in data)))
            curve = [each.held_out for each in looks]
            if rule.best(curve) == len(curve) - 1:  # the next step changes in place
                best.update({name: w.clone() for name, w in model.state_dict().items()})
            if rule.stops(curve):
                trainer.config = replace(trainer.config, steps=trainer.step)

    trainer.on_step = look
    look(trainer)
    trainer.fit()
    model.load_state_dict(best)
    trainer.save()
    return looks
