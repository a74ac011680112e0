"""The main job with three seeds: what of its table is the method, and what is luck?

One seed is an anecdote. The tour's stages are run with three: same world, same number
of steps, other weights, other order of the text. What the table of the tour says should
lie within this spread, if it had time for as many steps.
"""

import contextlib
import io
import tempfile
from functools import cache
from pathlib import Path

import torch

from minillm.data.packed import Rows
from minillm.model import GPT
from minillm.school.options import TRAINING, TourOptions, model_config
from minillm.school.pipeline import Run
from minillm.school.studies import run_study
from minillm.school.tiny_measure import measure
from minillm.school.tiny_sft import fine_tune, respond_to_all
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import TrainConfig, Trainer

QUESTION = "How far from the truth does the main job end, over three seeds?"
ARMS = {"1,200 steps": {"steps": 1200}, "2,000 steps": {"steps": 2000}}


@cache
def text() -> TinyText:
    """The same for all runs."""
    return tiny_text(documents=260_000)


def run(seed: int, steps: int) -> dict:
    """Pre-train, measure, fine-tune, ask; the numbers of the tour's table."""
    known, options = text(), TourOptions(seed=seed)
    torch.manual_seed(seed)
    model = GPT(model_config(options, known.tokenizer))
    rows = Rows(known.rows, options.batch, seed)
    config = TrainConfig(steps, **TRAINING)
    trainer = Trainer(model, rows, config, progress=False)
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {})
        with contextlib.redirect_stdout(io.StringIO()):
            measure(run, known, model)
            assistant = fine_tune(run, options, known, model, resumed=False)
            respond_to_all(run, known, assistant)
    return {"tokens": sum(trainer.metrics.column("tokens"))} | rounded(run.results)


def rounded(results: dict) -> dict:
    """The same with four decimals, however deep."""
    return {
        name: rounded(value) if isinstance(value, dict) else round(value, 4)
        for name, value in results.items()
    }


if __name__ == "__main__":
    text()  # made here, or the first run would pay for it
    run_study(__file__, QUESTION, ARMS, seeds=(0, 1, 2), run=run)
