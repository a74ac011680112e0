"""What the runs of study 16 say: the rule applied, the law fitted, a picture.

python studies/scaling_fits.py         writes results/16_scaling.png
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.files import atomic_write
from minillm.school.studies import STUDIES, Study, load_study
from minillm.training.scaling import ScalingLaw, chinchilla_loss
from minillm.training.scaling_fit import bootstrap, fit_law, interval, jackknife
from minillm.world.config import zipf_weights

ENTROPY = -math.fsum(p * math.log(p) for p in zipf_weights(64**2, 1.5))


@cache
def study() -> Study:
    """The results."""
    return load_study("16_scaling")


def points() -> list[str]:
    """The arms that the rule leaves in: most of their excess is not in the head."""
    return [arm for arm in study().settings if study().mean(arm, "head") <= 0.5]


@cache
def runs() -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """N, D and loss of all their runs."""
    names = ("N", "D", "loss")
    found = ([x for arm in points() for x in study().values(arm, n)] for n in names)
    return tuple(torch.tensor(values).double() for values in found)


@cache
def law() -> ScalingLaw:
    """Fitted to all runs that the rule leaves in."""
    return fit_law(*runs())


def product() -> tuple[float, float, Float[Tensor, " n"]]:
    """The a and b of E + k N^-a D^-b, with E known, and what it says of the runs."""
    N, D, loss = runs()
    y = (loss - ENTROPY).log()
    x = torch.stack([torch.ones_like(y), -N.log(), -D.log()], 1)
    w = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return w[1].item(), w[2].item(), ENTROPY + (x @ w).exp()


def residual(told: Float[Tensor, " n"]) -> str:
    """The root mean square of what is told less what was measured, in nats."""
    return f"{(told - runs()[2]).square().mean().sqrt().item():.3f}"


def rows() -> list[list[str]]:
    """Of the table: the truth, the fit, and how well it is determined."""
    N, D, _ = runs()
    names = ("E", "alpha", "beta")

    def between(laws: list[ScalingLaw], level: float) -> list[str]:
        ends = (interval(laws, name, level) for name in names)
        return [f"{low:.2f} to {high:.2f}" for low, high in ends]

    fitted = [f"{law().E:.3f}", f"{law().alpha:.2f}", f"{law().beta:.2f}"]
    a, b, told = product()
    by_hand = [f"{ENTROPY:.3f}, given", f"{a:.2f}", f"{b:.2f}"]
    return [
        ["the truth", f"{ENTROPY:.3f}", "", "", ""],
        ["fitted to all runs", *fitted, residual(chinchilla_loss(N, D, law()))],
        ["without one point: all of them", *between(jackknife(*runs()), 1.0), ""],
        ["runs drawn anew: 90 % of them", *between(bootstrap(*runs()), 0.9), ""],
        ["E and a product of both powers", *by_hand, residual(told)],
    ]


def draw() -> bytes:
    """Mean losses over tokens for each size, the fitted law, its E and the true one."""
    from minillm.school import show  # it needs matplotlib, which the tables do not

    title = "The fitted floor is nearly as far off as the best run"
    axes = show.figure(title, "tokens read", "loss (nats a fact)", height=4.2)
    show.count_axis(axes, log=True)
    sizes = sorted({study().values(arm, "N")[0] for arm in points()})
    ends = []
    for i, N in enumerate(sizes):
        arms = [arm for arm in points() if study().values(arm, "N")[0] == N]
        D = torch.tensor([study().mean(arm, "D") for arm in arms]).double()
        color = show.shade(1 - i / (len(sizes) - 1))
        means = [study().mean(arm, "loss") for arm in arms]
        spreads = [study().spread(arm, "loss") for arm in arms]
        axes.errorbar(D, means, spreads, fmt="o", color=color, markersize=5)
        read = torch.logspace(math.log10(D[0]), math.log10(D[-1]), 50).double()
        fitted = chinchilla_loss(torch.tensor(N).double(), read, law())
        axes.plot(read, fitted, color=color)
        ends.append((fitted[-1].item(), f"{N / 1000:.0f}k parameters", color))
    axes.set_xlim(right=2 * D[-1].item())
    axes.set_ylim(bottom=min(law().E, ENTROPY) - 0.06)
    levels = (
        (ENTROPY, "true entropy", show.TRUTH, "--"),
        (law().E, "fitted E", show.OURS, ":"),
    )
    for y, name, color, style in levels:
        axes.axhline(y, color=color, linestyle=style, linewidth=1.5)
        text = f"{name} {y:.3f}"
        show.label(axes, D[0].item(), y + 0.015, text, color)
    show.spread_labels(axes, D[-1].item(), ends, least=0.055)
    return show.png(axes)


if __name__ == "__main__":
    with atomic_write(STUDIES / "results" / "16_scaling.png") as temporary:
        temporary.write_bytes(draw())
