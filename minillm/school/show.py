"""The house style of every picture.

The truth (or a yardstick) is always the same grey dashed line, what we trained is
always the same blue, rivals take colours that a colour-blind reader tells apart.
Backgrounds are transparent and text is mid-grey, so a picture reads on a light page
and a dark one. The title states the finding; lines are labelled where they end.
"""

import base64
import io
import itertools
import math
from collections.abc import Sequence

import matplotlib
import matplotlib.colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

OURS, TRUTH, RIVAL, WARM = "#2b7fd4", "#8a8f98", "#d98200", "#c2507a"
TEXT, FAINT = "#7a808a", "#9aa0aa40"

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 13,
    "font.size": 11.5,
    "lines.linewidth": 2,
    "legend.frameon": False,
}


def figure(title: str, x: str, y: str, width: float = 7.5, height: float = 3.6) -> Axes:
    """Open a figure of one panel in the house style; return its axes.

    Args:
        title: the finding, as a sentence.
        x, y: names of the axes, with units.
        width, height: in inches.
    """
    with matplotlib.rc_context(STYLE):
        axes = Figure((width, height), dpi=144, layout="constrained").subplots()
        axes.set(title=title, xlabel=x, ylabel=y)
    return axes


def label(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """Write beside a point what the line there is, in the line's colour."""
    axes.annotate(
        text, (x, y), (6, 0), textcoords="offset points", color=color, va="center"
    )


def spread_labels(
    axes: Axes, x: float, ends: Sequence[tuple[float, str, str]], least: float = 0.065
) -> None:
    """Label the ends of several lines, moved apart where they are close together.

    Labels of equal ends stand in the order in which they are given, from the top.

    Args:
        axes: with its final y limits and scale.
        x: where the lines end.
        ends: (y, text, colour) of each.
        least: distance between labels, as a part of the height.
    """
    to_axes = axes.transScale + axes.transLimits
    ordered = sorted(ends, key=lambda end: -end[0])
    wanted = [to_axes.transform((x, y))[1] for y, *_ in ordered]
    heights: list[float] = []
    for at in wanted:
        heights.append(min(at, heights[-1] - least) if heights else at)
    # What would hang below the picture is pushed up again, from the bottom.
    for i in reversed(range(len(heights))):
        lowest = (len(heights) - 1 - i) * least
        heights[i] = max(heights[i], lowest)
    for (_, text, color), height in zip(ordered, heights, strict=True):
        place, where = (x, height), ("data", "axes fraction")
        offset = {"textcoords": "offset points", "va": "center"}
        axes.annotate(text, place, (6, 0), where, color=color, **offset)


def shade(part: float) -> tuple[float, float, float]:
    """From our colour (0) to a warm one (1), for lines that have an order."""
    ours, warm = (matplotlib.colors.to_rgb(color) for color in (OURS, RIVAL))
    return tuple(a + part * (b - a) for a, b in zip(ours, warm, strict=True))


def yardstick(axes: Axes, y: float, text: str, color: str = TRUTH) -> None:
    """Draw a level to compare with: dashed, labelled at the right end."""
    axes.axhline(y, color=color, linestyle="--", linewidth=1.5)
    axes.annotate(
        text,
        (1, y),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=color,
        ha="right",
        fontsize=10,
    )


def count_axis(axes: Axes, log: bool = False) -> None:
    """Write the numbers of the x axis as 10k, 100k, 1M; optionally logarithmic."""
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def bars(title: str, x: str, names: Sequence[str], values: Sequence[float]) -> Axes:
    """Horizontal bars, one a name, with the value at the end; the last one is ours."""
    axes = figure(title, x, "", height=0.9 + 0.42 * len(names))
    colors = [TRUTH] * (len(names) - 1) + [OURS]
    places = range(len(names), 0, -1)
    axes.barh(places, values, color=colors, height=0.66)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for place, value in zip(places, values, strict=True):
        label(axes, value, place, f"{value:.2f}", TEXT)
    axes.set_xlim(0, max(values) * 1.1)
    return axes


def smooth(values: Sequence[float], spread: float = 0.1) -> list[float]:
    """Mean of the neighbours within ``spread`` of each position, for a readable curve.

    The window grows with the position, a constant width on a logarithmic axis; it
    looks both ways, so the smoothed curve does not lag behind.

    >>> smooth([4.0, 2.0, 2.0, 2.0])
    [4.0, 2.0, 2.0, 2.0]
    """
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(len(values)):
        low = math.ceil(i * (1 - spread))
        high = min(int(i * (1 + spread)) + 1, len(values))
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def png(axes: Axes) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def data_url(axes: Axes) -> str:
    """The picture as text that an HTML page can hold, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(png(axes)).decode()


def picture(axes: Axes):
    """The picture as the last value of a notebook's cell, which shows it.

    No figure of pyplot is opened, so none is left open, and what the cell returns is
    the same text on every machine.
    """
    from IPython.display import Image  # only notebooks have it

    return Image(png(axes), width=round(axes.figure.get_figwidth() * 96))
