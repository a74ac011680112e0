"""The load of eight experts over training, from the results of ``15_moe``.

python studies/moe_picture.py      writes studies/results/15_moe.png
"""

import math
from pathlib import Path

import numpy as np

from minillm.files import atomic_write
from minillm.school import show
from minillm.school.studies import load_study

EVERY, E = 10, 8  # as in the study
COLOURS = {"no balancing": show.WARM, "balancing loss": show.OURS}
COLOURS |= {"nudged bias": show.RIVAL}


def main() -> None:
    """Three curves with the range of their seeds, and the even load."""
    study = load_study("15_moe")
    title = "Without balancing the load stays uneven; both cures even it"
    axes = show.figure(title, "steps", "entropy of the load (nats)")
    ends = [(math.log(E), "even: ln 8", show.TRUTH)]
    for name, colour in COLOURS.items():
        curves = np.array(study.values(f"experts, {name}", "load entropy"))
        steps = EVERY * np.arange(1, curves.shape[1] + 1)
        axes.plot(steps, curves.mean(0), color=colour)
        low, high = curves.min(0), curves.max(0)  # of three seeds
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        ends.append((float(curves[:, -1].mean()), name, colour))
    axes.plot((0, steps[-1]), (math.log(E),) * 2, "--", color=show.TRUTH)
    axes.set(xlim=(0, steps[-1] * 1.25), xticks=range(0, 501, 100), ylim=(0.8, 2.25))
    show.spread_labels(axes, steps[-1], ends)
    with atomic_write(Path(__file__).parent / "results" / "15_moe.png") as temporary:
        temporary.write_bytes(show.png(axes))


if __name__ == "__main__":
    main()
