r"""Training a reward model on pairs that annotators have ordered.

.. math:: L = -\log \sigma(r_{chosen} - r_{rejected}) +
              \lambda\, (r_{chosen} + r_{rejected})^2

Chosen and rejected go through the model in one batch, and once through the data: a
label is one bit, a noisy one, and large models learn by heart what they see twice.

The trunk begins as the model that is to be aligned, or the one before it, because the
reward can only be a function of what the trunk can tell at the last token. How a
response sounds is soon learned. Whether it is right has to be known, and known *there*:
a model that would give the right answer itself has not thereby compared it with the one
it reads. So find out how good a reward would be that only heard the sound, before a
high accuracy is taken for judgement.

Source: Ouyang et al. 2022 (InstructGPT), section 3.5 and appendix C.2, for one epoch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from minillm.alignment.choices import (
    bradley_terry_loss,
    centring_loss,
    pair_accuracy,
)
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Pair, score_pairs
from minillm.errors import require, require_count, require_positive
from minillm.training.metrics import MetricsLog
from minillm.training.optimizers import build_optimizers, clip_gradients
from minillm.training.schedules import wsd


@dataclass(frozen=True)
class RewardConfig:
    """How to train a reward model.

    Args:
        epochs: passes over the pairs.
        B: pairs in a batch; 2B rows.
        lr: peak learning rate of AdamW, for the embedding, the gains and the head.
        matrix_lr: peak learning rate of Muon.
        margin: see ``bradley_terry_loss``.
        centring: factor of ``centring_loss``.
        warmup: steps until the peak.
        clip: largest norm of the gradient.
        seed: of the order.

    Raises:
        ValueError: a setting out of its range.
    """

    epochs: float = 1.0
    B: int = 16
    lr: float = 2e-3
    matrix_lr: float = 5e-3
    margin: float = 0.0
    centring: float = 0.01
    warmup: int = 20
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_count(B=self.B)
        rates = {"lr": self.lr, "matrix_lr": self.matrix_lr, "clip": self.clip}
        require_positive(epochs=self.epochs, **rates)
        c = self.centring
        require(c >= 0, "centring", c, "at least 0", "0 leaves rewards without a zero")


def train_reward_model(
    model: RewardModel, pairs: Sequence[Pair], config: RewardConfig | None = None
) -> MetricsLog:
    """Fit a reward model to choices, in place.

    Args:
        model: a trunk that has learned the language, with a new head.
        pairs: as ``encode_pairs`` makes them.
        config: how.

    Returns:
        loss, accuracy and norm of the gradient at each step.

    Raises:
        ValueError: fewer pairs than a batch has.
        FloatingPointError: the loss is no number any more.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> pairs = [Pair([1, 2, i], [1, 3, i]) for i in range(32)]
    >>> log = train_reward_model(model, pairs, RewardConfig(epochs=8, warmup=0))
    >>> log.column("accuracy")[-1]
    1.0
    """
    config = config or RewardConfig()
    n, need = len(pairs), f"at least {config.B}, one batch"
    require(n >= config.B, "pairs", n, need, "give more or make B smaller")
    steps = math.ceil(config.epochs * n / config.B)
    optimizers = build_optimizers(
        model, "muon", config.lr, config.matrix_lr, weight_decay=0.0
    )
    log, was_training = MetricsLog(None), model.training
    model.train()
    for step, places in enumerate(_batches(n, steps, config)):
        factor = wsd(step, steps, config.warmup)
        batch = [pairs[i] for i in places]
        log.append(
            {"step": step} | _train_step(model, batch, optimizers, factor, config)
        )
    model.train(was_training)
    return log


def _batches(n: int, steps: int, config: RewardConfig) -> Iterable[list[int]]:
    """Places of pairs, each once an epoch, in a new order every epoch."""
    generator = torch.Generator().manual_seed(config.seed)
    waiting: list[int] = []
    for _ in range(steps):
        if len(waiting) < config.B:
            waiting += torch.randperm(n, generator=generator).tolist()
        yield waiting[: config.B]
        del waiting[: config.B]


def _train_step(model, batch, optimizers, factor, config) -> dict:
    chosen, rejected = score_pairs(model, batch)
    loss = bradley_terry_loss(chosen, rejected, config.margin)
    total = loss + config.centring * centring_loss(chosen, rejected)
    if not math.isfinite(total.item()):
        raise FloatingPointError("the loss is no number any more; try a smaller lr")
    model.zero_grad()
    total.backward()
    norm = clip_gradients(model.parameters(), config.clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
    accuracy = pair_accuracy(chosen, rejected)
    return {"loss": loss.item(), "accuracy": accuracy, "norm": norm}
