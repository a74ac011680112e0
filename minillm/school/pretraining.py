"""The stage that all tours share: a new model learns to predict the next token."""

import statistics
from collections.abc import Callable

import torch

from minillm.data import Tokenizer
from minillm.model import GPT, count_parameters
from minillm.school.options import TourOptions, model_config
from minillm.school.pace import UNKNOWN, Pace
from minillm.school.pipeline import Run
from minillm.training import MetricsLog, TrainConfig, Trainer, load_checkpoint


def pretrain(
    run: Run,
    options: TourOptions,
    tokenizer: Tokenizer,
    batches,
    look_at: Callable[[Trainer], Callable[[Trainer], None]],
    resumed: bool,
    **training,
) -> tuple[GPT, MetricsLog, MetricsLog]:
    """Train a new model, or go on with one.

    Args:
        run: whose folder takes the checkpoint and the logs.
        options: what the user asked for.
        tokenizer: whose size the model's vocabulary has.
        batches: to train on, as ``Trainer`` takes them.
        look_at: makes the look at a trainer's model, called after each step; its
            ``log`` is what it saw.
        resumed: whether to go on with what is in the folder.
        training: further settings of ``TrainConfig``.

    Returns:
        the model, the measurements of each step, and the looks at it.
    """
    torch.manual_seed(options.seed)
    model = GPT(model_config(options, tokenizer))
    run.save(finished=False)
    config = TrainConfig(steps_planned(run, resumed), save_every=100, **training)
    n = count_parameters(model.config)["total"]
    size = options.batch * options.context
    doing = f"{n:,} parameters, {options.minutes:g} minutes, {size:,} tokens a step"
    with run.stage("train", doing):
        trainer = Trainer(model, batches, config, run.folder, resume=resumed)
        pace, look = Pace(trainer, options.minutes), look_at(trainer)

        def on_step(trainer: Trainer) -> None:
            pace(trainer)
            look(trainer)

        trainer.on_step = on_step
        metrics = trainer.fit()
    model.eval()
    tokens = sum(metrics.column("tokens"))
    run.add("train", "parameters", "", f"{n:,}")
    run.add("train", "tokens seen", "", f"{tokens:,}")
    loss = statistics.fmean(metrics.column("loss")[-20:])
    run.add("train", "loss, last 20 steps (nats)", "", f"{loss:.3f}")
    return model, metrics, look.log


def steps_planned(run: Run, resumed: bool) -> int:
    """What the checkpoint of an interrupted run was heading for; else not known yet."""
    path = run.folder / "checkpoint.safetensors"
    if not (resumed and path.is_file()):
        return UNKNOWN
    return load_checkpoint(path).notes["steps"]
