"""The training loop: composition, and nothing that is not somewhere else in full.

    batch = batches[step]                       data/batches.py
    loss = next_token_loss(model(batch), batch) losses.py
    loss.backward()
    clip_gradients(parameters, clip)            optimizers.py
    optimizer.step()                            optimizers.py, muon.py
    save_checkpoint(...)                        checkpoints.py

One step may accumulate several batches and span several processes. Its loss is the
mean over the tokens of all of them, as if they had been one batch: each part is a sum
divided by the count of the whole window, never a mean of means.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from minillm.data.batches import Batch, Windows
from minillm.errors import differences, require
from minillm.model import GPT
from minillm.model.layers import at_least_float32
from minillm.training.checkpoints import load_checkpoint, restore, save_checkpoint
from minillm.training.distributed import World, parallelize
from minillm.training.interrupt import TrainingInterrupted, deferred_interrupt
from minillm.training.losses import count_targets, next_token_loss
from minillm.training.metrics import MetricsLog
from minillm.training.optimizers import build_optimizers, clip_gradients
from minillm.training.precision import autocast
from minillm.training.schedules import SCHEDULES
from minillm.training.settings import TrainConfig


class Trainer:
    """A model, its batches and its optimizers, on their way from step to step.

    Args:
        model: the model; on the device of ``world``.
        batches: ``batches[i]`` is the i-th ``Batch``, whenever it is asked for.
        config: how to train.
        folder: for ``checkpoint.safetensors`` and ``metrics.jsonl``; ``None`` keeps
            nothing on disk.
        resume: go on from the folder's checkpoint, if there is one.
        world: the processes that train together.
        on_step: called with the trainer after each step; it must not draw from the
            global random generators, or a resumed run would differ.
        progress: show a bar.

    Raises:
        ValueError: a checkpoint of another configuration, model or data.

    >>> import torch
    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16))
    >>> windows = Windows(torch.arange(640) % 64, T=16, B=4)
    >>> trainer = Trainer(model, windows, TrainConfig(steps=30), progress=False)
    >>> losses = trainer.fit().column("loss")
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        model: GPT,
        batches: Windows,
        config: TrainConfig,
        folder: str | Path | None = None,
        resume: bool = True,
        world: World | None = None,
        on_step: Callable[["Trainer"], None] | None = None,
        progress: bool = True,
    ):
        self.config, self.batches, self.on_step = config, batches, on_step
        self.world, self.model, self.step = world or World(), model, 0
        self.folder = Path(folder) if folder else None
        self.checkpoint = self.folder / "checkpoint.safetensors" if folder else None
        self.parallel = parallelize(model, config.parallel, self.world)
        rates = (config.lr, config.matrix_lr, config.betas, config.weight_decay)
        self.optimizers = build_optimizers(model, config.optimizer, *rates)
        self._first = self.world.rank == 0  # the one that shows and writes
        self.progress = progress and self._first
        if resume and folder and self.checkpoint.is_file():
            self._resume()
        log = self.folder / "metrics.jsonl" if folder and self._first else None
        self.metrics = MetricsLog(log, before=self.step)

    @property
    def _notes(self) -> dict:
        """What a resumed run must have in common with the run that it goes on with."""
        config = asdict(self.config) | {"betas": list(self.config.betas)}
        different = ("save_every", "parallel")  # these change no weight
        config = {name: v for name, v in config.items() if name not in different}
        return config | {"data": getattr(self.batches, "fingerprint", None)}

    def fit(self) -> MetricsLog:
        """Train until ``config.steps`` steps are done; return the measurements.

        Raises:
            TrainingInterrupted: Ctrl-C; the step was finished and saved first.
            FloatingPointError: the loss is no number any more.
            DiskFullError: no room for a checkpoint; the last one is whole.
        """
        bar = tqdm(initial=self.step, disable=not self.progress, unit="step")
        with bar, deferred_interrupt() as interrupted:
            while self.step < self.config.steps:
                record = self.train_step()
                self.metrics.append(record)
                if self.on_step:
                    self.on_step(self)
                n, every = self.config.steps, self.config.save_every
                bar.total = n  # on_step may have planned anew
                bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                bar.update()
                stop = self.world.sum(interrupted.is_set()) > 0  # all stop together
                if stop or self.step % every == 0 or self.step == n:
                    self.save()
                if stop and self.step < n:
                    raise TrainingInterrupted(self._how_to_go_on())
        return self.metrics

    def train_step(self) -> dict:
        """Do one optimizer step; return what was measured on the way."""
        start = time.perf_counter()
        self.model.zero_grad()  # an interrupted step may have left some
        n = self.config.accumulate
        window = range(self.step * n, (self.step + 1) * n)
        batches = [self.world.share(self.batches[i]) for i in window]
        n_targets = self.world.sum(sum(count_targets(*batch) for batch in batches))
        remedy = "give each step a row with a target after its first token"
        require(n_targets > 0, "targets", n_targets, "at least 1", remedy)
        last = batches[-1]
        parts = [self._backward(b, n_targets, last=b is last) for b in batches]
        loss = self.world.sum(sum(parts))
        norm = clip_gradients(self.model.parameters(), self.config.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"loss must stay finite, got {loss} (gradient norm {norm}) at step "
                f"{self.step}; lower lr or matrix_lr, or warm up for longer"
            )
        factor = self._set_learning_rates()
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return {
            "step": self.step - 1,
            "loss": loss,
            "lr": self.config.lr * factor,
            "grad_norm": norm,
            "tokens": int(n_targets),
            "seconds": time.perf_counter() - start,
        }

    def _backward(self, batch: Batch, n_targets: float, last: bool) -> float:
        """Add one batch's share of the gradient; return its share of the mean loss."""
        # Only the last backward pass of a step has to exchange gradients.
        quiet = not last and hasattr(self.parallel, "no_sync")
        with self.parallel.no_sync() if quiet else contextlib.nullcontext():
            with autocast(self.config.precision, self.world.device):
                logits = self.parallel(batch.tokens)
            logits, n = at_least_float32(logits), count_targets(*batch)
            # Without targets there is no mean, but engines still wait for a gradient.
            mean = next_token_loss(logits, *batch) if n else 0 * logits.sum()
            loss = mean * (n / n_targets)
            (loss * self.world.size).backward()  # engines average; we want the sum
        return loss.item()

    def _set_learning_rates(self) -> float:
        c = self.config
        factor = SCHEDULES[c.schedule](self.step, c.steps, c.warmup, c.floor)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return factor

    def save(self) -> None:
        """Write the checkpoint, if there is a folder; all processes take part."""
        if self.folder:
            parts = (self.model, self.optimizers, self.step, self._notes)
            save_checkpoint(self.checkpoint, *parts, write=self._first)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.checkpoint)
        changed = differences(checkpoint.notes, self._notes)
        remedy = "pass the same settings, choose another folder, or pass resume=False"
        same = "one that this run goes on with (then, now)"
        require(not changed, f"checkpoint {self.checkpoint}", changed, same, remedy)
        restore(checkpoint, self.model, self.optimizers)
        self.step = checkpoint.step

    def _how_to_go_on(self) -> str:
        done = f"stopped after step {self.step} of {self.config.steps}"
        if not self.folder:
            return f"{done}; nothing was saved, because the trainer has no folder"
        return f"{done}; saved {self.checkpoint}. Run the same command again to go on."
