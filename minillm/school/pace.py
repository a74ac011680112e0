"""Minutes instead of steps: a run that lasts as long as it was asked to.

Nobody knows how fast a laptop is, and it changes while it is measured. The warm-up,
stable, decay schedule makes that harmless: on its plateau the learning rate does not
depend on how long the run will be. So the plan may change there, and once half of the
time is gone it stands: as many steps again, the last part of them decaying.
"""

import statistics
from collections import deque
from dataclasses import replace

from minillm.training import Trainer

UNKNOWN = 1_000_000  # steps, until the first few have been timed
LEAST = 10  # steps of even the shortest run


class Pace:
    """Called after each step, plans the number of steps anew during the first half.

    Args:
        trainer: a trainer with the ``"wsd"`` schedule, whose ``config.steps`` it sets.
        minutes: of training, those before a resumption included.
    """

    def __init__(self, trainer: Trainer, minutes: float):
        self.budget = 60 * minutes
        took = trainer.metrics.column("seconds")
        self.elapsed = sum(took)
        self.recent = deque(took[-50:], maxlen=50)

    def __call__(self, trainer: Trainer) -> None:
        """Plan anew, or keep to the plan."""
        seconds = trainer.metrics.records[-1]["seconds"]
        before, self.elapsed = self.elapsed, self.elapsed + seconds
        self.recent.append(seconds)
        if before > self.budget / 2 and trainer.config.steps < UNKNOWN:
            return
        to_come = (self.budget - self.elapsed) / statistics.median(self.recent)
        # Twice the steps done keeps this one on the plateau of the new plan, too.
        steps = max(trainer.step + int(to_come), 2 * trainer.step, LEAST)
        trainer.config = replace(trainer.config, steps=steps)
