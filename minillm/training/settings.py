"""The settings of a training run, checked before anything is built."""

from dataclasses import dataclass

from minillm.errors import require, require_count, require_one_of, require_positive
from minillm.training.distributed import STRATEGIES
from minillm.training.optimizers import OPTIMIZERS
from minillm.training.precision import PRECISIONS
from minillm.training.schedules import SCHEDULES


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: optimizer steps.
        optimizer: ``"muon"``, ``"adamw"`` or ``"adamw-by-hand"``.
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon.
        betas: of AdamW.
        weight_decay: decoupled, for parameters of two dimensions.
        schedule: ``"wsd"``, ``"cosine"`` or ``"constant"``.
        warmup: steps until the peak.
        floor: last factor of the schedule.
        clip: largest norm of the gradient.
        accumulate: batches in a step.
        precision: ``"float32"`` or ``"bfloat16"``.
        parallel: ``"ddp"`` or ``"fsdp"``, where there are several processes.
        save_every: steps between checkpoints; one is also written at the end.

    Raises:
        ValueError: a setting out of its range.

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ValueError: steps must be an int of at least 1, got 0; give a positive whole number
    """

    steps: int
    optimizer: str = "muon"
    lr: float = 5e-3
    matrix_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: int = 20
    floor: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "float32"
    parallel: str = "ddp"
    save_every: int = 200

    def __post_init__(self) -> None:
        counts = ("steps", "accumulate", "save_every")
        require_count(**{name: getattr(self, name) for name in counts})
        require_positive(lr=self.lr, matrix_lr=self.matrix_lr, clip=self.clip)
        require_one_of(OPTIMIZERS, optimizer=self.optimizer)
        require_one_of(SCHEDULES, schedule=self.schedule)
        require_one_of(PRECISIONS, precision=self.precision)
        require_one_of(STRATEGIES, parallel=self.parallel)
        f, w, decay = self.floor, self.warmup, self.weight_decay
        require(0 <= f <= 1, "floor", f, "in 0..1, a factor of lr", "0 ends at zero")
        require(w >= 0, "warmup", w, "at least 0", "0 has none")
        require(decay >= 0, "weight_decay", decay, "at least 0", "0 has none")
