r"""The loop of DPO and its relatives: supervised learning on pairs.

    pairs = pairs.with_reference(ref)         once, before training
    for each step:
        scored = pairs[step].score(model)     log-probs of chosen and rejected
        loss = dpo_loss(...).mean()           or another loss of the family
        loss.backward(); clip_gradients(...); optimizer.step()

No sampling, no reward model, no critic, and after the first pass no second model: this
is why DPO is cheap. What it cannot do is find out about responses that are not in the
data; see ``online_dpo`` for that.

Small learning rates and few passes. The margin can grow for ever, and a model that has
learned the order of its pairs by heart goes on pushing them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.alignment.dpo import dpo_loss
from minillm.alignment.feedback import Feedback
from minillm.alignment.loop import repeat, update
from minillm.alignment.preference_data import PairBatch, PreferencePairs
from minillm.alignment.scored import Scored
from minillm.errors import require, require_count, require_positive
from minillm.model import GPT
from minillm.training import MetricsLog
from minillm.training.schedules import wsd

Loss = Callable[[Scored, float], Tensor]


@dataclass(frozen=True)
class PreferConfig:
    """How to train.

    Args:
        steps: optimizer steps.
        beta: of the loss, and of the rewards that are logged.
        lr: peak learning rate of AdamW; it falls to zero over the last third.
        warmup: steps until the peak.
        max_norm: of the gradient.

    Raises:
        ValueError: a setting out of its range.
    """

    steps: int
    beta: float = 0.1
    lr: float = 3e-4
    warmup: int = 5
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        require_count(steps=self.steps)
        require_positive(beta=self.beta, lr=self.lr, max_norm=self.max_norm)
        require(self.warmup >= 0, "warmup", self.warmup, "at least 0", "0 has none")


def dpo(scored: Scored, beta: float) -> Tensor:
    """The loss that is taken if none is given: DPO on sums."""
    return dpo_loss(*scored.sums, beta)


def prefer(
    model: GPT,
    ref: GPT | None,
    pairs: PreferencePairs | Feedback,
    config: PreferConfig,
    loss: Loss = dpo,
    progress: bool = True,
    measure: Callable[[], dict[str, float]] | None = None,
    every: int = 10,
) -> MetricsLog:
    """Train a model on preferences, in place.

    Args:
        model: the policy; it is changed.
        ref: scores the responses once, now, so the model itself is a valid reference:
            it stands for the policy before training. ``None`` for losses without one,
            and for pairs that have been scored already.
        pairs: what was preferred; ``Feedback`` for KTO.
        config: how.
        loss: (scored, beta) -> (B,); see ``scored`` for what stands there.
        progress: show a bar.
        measure: more to be logged, for instance ``own_responses.sampled_kl``; it must
            leave the model as it is.
        every: steps between two measures; the first is made before training.

    Returns:
        for each step: loss, rewards, margin, accuracy and log-probs (before the step),
        and the norm of the gradient.

    Raises:
        ValueError: rows that are longer than the model's context, a loss that needs a
            reference where there is none.
        FloatingPointError: the loss is no number any more.
        TrainingInterrupted: Ctrl-C; the model keeps what it learned.

    >>> from minillm.data import Encoded
    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16, context=8))
    >>> row = Encoded([5, 6, 7], [False, True, True]), Encoded([5, 8], [False, True])
    >>> pairs = PreferencePairs([row], T=8, B=1, pad=0)
    >>> log = prefer(model, model, pairs, PreferConfig(steps=9), progress=False)
    >>> log.column("accuracy")[0], log.column("accuracy")[-1]
    (0.5, 1.0)
    """
    need = f"at most {model.config.context}, the model's context"
    fits, remedy = model.config.context >= pairs.T, "drop or cut longer pairs"
    require(fits, "T", pairs.T, need, remedy)
    require_count(every=every)
    if ref is not None:
        pairs = pairs.with_reference(ref)
    optimizer = adamw(model)

    def batch(step: int) -> PairBatch:
        return pairs[step]

    def extra(step: int) -> dict[str, float]:
        return measure() if measure is not None and step % every == 0 else {}

    return follow(model, optimizer, batch, config, loss, progress, extra)


def follow(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], PairBatch],
    config: PreferConfig,
    loss: Loss = dpo,
    progress: bool = True,
    extra: Callable[[int], dict[str, float]] = lambda step: {},
) -> MetricsLog:
    """The loop itself: one batch, one update, wherever batches come from.

    Args:
        model, config, loss, progress: of ``prefer``.
        optimizer: of the model.
        batch: step -> the batch to learn from, scored by the reference.
        extra: step -> what else to log, called after the batch was made.
    """
    steps = iter(range(config.steps))

    def step() -> dict[str, float]:
        i = next(steps)
        scored = batch(i).score(model)
        record = extra(i) | scored.metrics(config.beta)
        mean = loss(scored, config.beta).mean()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * wsd(i, config.steps, config.warmup)
        record["grad_norm"] = update(mean, [model], optimizer, config.max_norm)
        return {"loss": mean.item()} | record

    return repeat(step, config.steps, progress)


def adamw(model: GPT) -> torch.optim.Optimizer:
    """AdamW on what is trainable, without decay; ``follow`` sets the rate."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    n, remedy = len(trainable), "set requires_grad on some parameters"
    require(n > 0, "model", n, "trainable", remedy)
    return torch.optim.AdamW(trainable, betas=(0.9, 0.95), weight_decay=0.0)
