"""Training: loss, optimizers, schedules, and a loop that survives being killed.

Read ``losses``, ``schedules``, ``optimizers``, ``muon``, then ``checkpoints``,
``settings`` and ``trainer``; ``interrupt`` for Ctrl-C; ``distributed`` and
``precision`` when one device is not enough. ``minimise`` is the loop in its shortest
form, for ``objectives``, ``fillin`` and ``electra``.

``scaling``, ``scaling_curves`` and ``scaling_fit`` say what size and data buy,
``number_formats`` and ``loss_scaler`` what few bits cost; ``spikes`` and ``averaging``
mend what went wrong and what is noisy.
"""

from minillm.training.averaging import WeightAverage, average_checkpoints
from minillm.training.checkpoints import load_checkpoint, load_model, save_checkpoint
from minillm.training.distributed import World, join_world
from minillm.training.interrupt import TrainingInterrupted
from minillm.training.loss_scaler import LossScale, scaled_step
from minillm.training.losses import next_token_loss
from minillm.training.metrics import MetricsLog, read_metrics
from minillm.training.minimise import minimise
from minillm.training.muon import Muon, orthogonalize
from minillm.training.optimizers import AdamW, build_optimizers, clip_gradients
from minillm.training.scaling import (
    BESIROGLU,
    HOFFMANN,
    ScalingLaw,
    chinchilla_loss,
    compute_optimal,
    training_flops,
)
from minillm.training.scaling_fit import fit_law
from minillm.training.settings import TrainConfig
from minillm.training.spikes import SpikeRule, fit_without_spikes
from minillm.training.trainer import Trainer
