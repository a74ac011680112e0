"""Training: loss, optimizers, schedules, and a loop that survives being killed.

Read ``losses``, ``schedules``, ``optimizers``, ``muon``, then ``checkpoints`` and
``trainer``; ``distributed`` and ``precision`` when one device is not enough.
"""

from minillm.training.checkpoints import load_checkpoint, load_model, save_checkpoint
from minillm.training.distributed import World, join_world
from minillm.training.losses import next_token_loss
from minillm.training.metrics import MetricsLog, read_metrics
from minillm.training.muon import Muon, orthogonalize
from minillm.training.optimizers import (
    AdamW,
    adamw_update,
    build_optimizers,
    clip_gradients,
    parameter_groups,
)
from minillm.training.trainer import TrainConfig, Trainer, TrainingInterrupted

__all__ = [
    "AdamW",
    "MetricsLog",
    "Muon",
    "TrainConfig",
    "Trainer",
    "TrainingInterrupted",
    "World",
    "adamw_update",
    "build_optimizers",
    "clip_gradients",
    "join_world",
    "load_checkpoint",
    "load_model",
    "next_token_loss",
    "orthogonalize",
    "parameter_groups",
    "read_metrics",
    "save_checkpoint",
]
