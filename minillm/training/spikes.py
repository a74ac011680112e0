r"""Loss spikes: notice one, go back to before it, and go on without the batch.

A spike is a loss far above what has been usual, where "usual" must not be moved by the
spike itself: the median of the last losses, and the median absolute deviation from it,

.. math:: \ell > median + k \cdot 1.4826 \; MAD

(1.4826 makes MAD the standard deviation of normal noise). Then weights, moments and
random generators are restored from the last checkpoint, and the batches that were read
just before the spike are left out from then on. Since batches are a function of the
step, the run that results is bit for bit the one that never had these batches.

Source: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), section 5.1, who went back about
100 steps and left out 200 to 500 batches; the same batches from other weights made no
spike. Differs from it: a rule decides, where people did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from minillm.data.batches import Batch
from minillm.errors import require, require_count, require_positive
from minillm.training.checkpoints import load_checkpoint, restore
from minillm.training.trainer import Trainer


@dataclass(frozen=True)
class SpikeRule:
    """When a loss is a spike.

    Args:
        window: how many of the last losses say what is usual.
        least: with fewer than this many, none is a spike.
        k: deviations above the median.

    >>> rule, losses = SpikeRule(least=5), [2.0, 2.2, 1.9, 2.1, 2.0]
    >>> rule(losses, 2.4), rule(losses, 3.0), rule(losses, float("nan"))
    (False, True, True)
    """

    window: int = 64
    least: int = 16
    k: float = 6.0

    def __post_init__(self) -> None:
        require_count(window=self.window, least=self.least)
        require_positive(k=self.k)
        enough = f"at least least = {self.least}"
        require(self.window >= self.least, "window", self.window, enough, "widen it")

    def __call__(self, losses: Sequence[float], loss: float) -> bool:
        """Whether ``loss`` is a spike after ``losses``; what is no number always is."""
        usual = losses[-self.window :]
        if len(usual) < self.least:
            return loss != loss
        middle = median(usual)
        deviation = 1.4826 * median(abs(each - middle) for each in usual)
        return not loss <= middle + self.k * deviation


class Skipping:
    """Batches without those that were left out; the others move up.

    >>> batches = Skipping("abcdef")
    >>> batches.skip({1, 2}); batches[0], batches[1], batches.place(1)
    ('a', 'd', 3)
    """

    def __init__(self, batches):
        self.batches, self.skipped = batches, set()
        self.fingerprint = getattr(batches, "fingerprint", None)

    def skip(self, places: set[int]) -> None:
        """Leave out these places of the original batches."""
        self.skipped |= places

    def place(self, i: int) -> int:
        """Where the i-th batch that is left stands in the original."""
        for skipped in sorted(self.skipped):
            i += skipped <= i
        return i

    def __getitem__(self, i: int) -> Batch:
        return self.batches[self.place(i)]


def fit_without_spikes(
    trainer: Trainer, rule: SpikeRule | None = None, span: int = 1, most: int = 10
) -> tuple[list[float], list[int]]:
    """Train to the end; roll back and skip where the loss spikes.

    Args:
        trainer: with a folder, where its checkpoint goes every ``save_every`` steps.
            It writes no metrics and calls no ``on_step``, for steps may be undone; nor
            does its checkpoint remember what was left out, if it is killed.
        rule: what a spike is.
        span: steps, up to the spike's, whose batches are left out.
        most: spikes after which the batches are no longer to blame.

    Returns:
        the losses of the steps that count, and the places of the batches left out.

    Raises:
        ValueError: a trainer without a folder, counts that are none.
        FloatingPointError: more spikes than ``most``.
    """
    require_count(span=span, most=most)
    need, remedy = "one with a folder", "a rollback needs a checkpoint"
    require(trainer.checkpoint is not None, "trainer", trainer, need, remedy)
    rule, first = rule or SpikeRule(), trainer.step
    trainer.batches = batches = Skipping(trainer.batches)
    trainer.save()
    losses, spikes, saved = [], 0, trainer.step
    while trainer.step < trainer.config.steps:
        step = trainer.step
        loss = _loss_of_step(trainer)
        if not rule(losses, loss):
            losses.append(loss)
            if trainer.step % trainer.config.save_every == 0:
                trainer.save()
                saved = trainer.step
            continue
        spikes += 1
        if spikes > most:
            raise FloatingPointError(
                f"spikes must be at most {most}, got one more at step {step}; lower lr "
                "or matrix_lr, or warm up for longer"
            )
        n, begin = trainer.config.accumulate, max(saved, step + 1 - span)
        batches.skip({batches.place(i) for i in range(begin * n, (step + 1) * n)})
        restore(load_checkpoint(trainer.checkpoint), trainer.model, trainer.optimizers)
        trainer.step = saved
        del losses[saved - first :]
    trainer.save()
    return losses, sorted(batches.skipped)


def _loss_of_step(trainer: Trainer) -> float:
    try:
        return trainer.train_step()["loss"]
    except FloatingPointError:  # before the optimizer's step, so nothing has changed
        return float("nan")
