"""The tour's page: what was measured, drawn and put into words.

Every sentence with a number is made from the run; whether the model beats a yardstick
is computed before it is said.
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes

from minillm.files import atomic_write
from minillm.model import GPT, count_parameters, flops_per_token
from minillm.school import show
from minillm.school.pipeline import HEADER, Run
from minillm.school.report import Page
from minillm.training import MetricsLog

ABOUT_BITS = (
    "Bits per byte says how surprising the held-out text is to a model: a byte that "
    "could be anything takes 8 bits, a byte that the model is sure of takes almost "
    "none. It is also the size of a file, because a good predictor is a good "
    "compressor. So gzip and xz are language models too, and may be compared: "
    "alone, they know nothing but the held-out text itself; primed, they have read "
    "the training text first (gzip remembers its last 32 kB of it, xz all of it). "
    "The 5-gram model counts what follows each four tokens of the training text, "
    "with Kneser-Ney smoothing."
)


def write_report(
    run: Run,
    options,
    text,
    model: GPT,
    metrics: MetricsLog,
    looks: MetricsLog,
    scores: dict[str, float],
) -> Path:
    """Write ``report.html`` into the run's folder; return its path."""
    page = Page("A language model, trained in minutes")
    page.text(summary(text.corpus.name, model, metrics, scores), "lead")
    page.table(HEADER, [row for row in run.table() if row[0] != "report"])
    page.heading("How good is it?")
    page.picture(*bits_picture(scores))
    page.text(ABOUT_BITS, "note")
    page.heading("How it learned")
    page.picture(*loss_picture(metrics, looks))
    page.heading("What it wrote on the way")
    for look in looks.records:
        caption = (
            f"after {look['tokens']:,} tokens, held-out loss {look['heldout_loss']:.2f}"
        )
        page.sample(look["prompt"], look["sample"], caption)
    page.heading("Behind the scenes")
    page.picture(*rate_picture(metrics))
    page.picture(*gradient_picture(metrics))
    page.text(machine_room(model, metrics, options.context), "note")
    return page.write(run.folder / "report.html")


def summary(
    name: str, model: GPT, metrics: MetricsLog, scores: dict[str, float]
) -> str:
    """One paragraph: what was trained and how it compares."""
    n = count_parameters(model.config)["total"]
    tokens = sum(metrics.column("tokens"))
    minutes = sum(metrics.column("seconds")) / 60
    ours = scores["minillm"]
    beaten = [name for name, bits in scores.items() if bits > ours]
    stronger = [name for name, bits in scores.items() if bits < ours]
    verdict = f"That is better than {listed(beaten)}. " if beaten else ""
    if stronger:
        verdict += f"Still better than the model: {listed(stronger)}."
    return (
        f"A model of {n:,} parameters read {tokens:,} tokens of {name} in "
        f"{minutes:.1f} minutes. On text that it had not seen it needs {ours:.2f} bits "
        f"for each byte. {verdict}"
    )


def picture_for_readme(run_folder: str, path: str) -> None:
    """Draw the bits per byte of a finished run into a PNG file."""
    state = json.loads(Path(run_folder, "run.json").read_text(encoding="utf-8"))
    axes, _ = bits_picture(state["results"]["bits per byte"])
    with atomic_write(path) as temporary:
        temporary.write_bytes(show.png(axes))


def listed(names: list[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["gzip", "xz", "5-gram"])
    'gzip, xz and 5-gram'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def bits_picture(scores: dict[str, float]) -> tuple[Axes, str]:
    """Bits per byte of all, worst first, ours last."""
    others = sorted(
        (s for s in scores.items() if s[0] != "minillm"), key=lambda s: -s[1]
    )
    names, values = zip(*others, ("minillm", scores["minillm"]), strict=True)
    best_other = min(values[:-1])
    saved = 1 - values[-1] / best_other
    title = "The model predicts held-out text better than all yardsticks"
    if saved <= 0:
        title = f"{names[values.index(best_other)]} still predicts held-out text better"
    axes = show.bars(
        title, "bits per byte of held-out text (less is better)", names, values
    )
    told = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(names, values, strict=True)
    )
    return axes, f"Bits per byte of held-out text: {told}."


def loss_picture(metrics: MetricsLog, looks: MetricsLog) -> tuple[Axes, str]:
    """Training loss and held-out loss against tokens."""
    tokens, losses = running_tokens(metrics), metrics.column("loss")
    smooth = show.smooth(losses)
    first, last = losses[0], looks.records[-1]["heldout_loss"]
    title = f"The loss falls from {first:.1f} to {last:.1f} nats per token"
    axes = show.figure(title, "tokens seen", "loss (nats per token)")
    axes.plot(tokens, losses, color=show.OURS, alpha=0.25, linewidth=1)
    axes.plot(tokens, smooth, color=show.OURS)
    seen = looks.column("tokens")
    axes.plot(seen, looks.column("heldout_loss"), "o", color=show.RIVAL, markersize=7)
    show.label(axes, seen[-1], last, "held-out", show.RIVAL)
    show.label(axes, tokens[-1], smooth[-1], "training", show.OURS)
    show.count_axis(axes, log=True)
    axes.set_xlim(tokens[0], tokens[-1] * 2)
    separate_labels(axes)
    alt = (
        f"Loss against tokens on a logarithmic axis: training falls from {first:.2f} "
        f"to {smooth[-1]:.2f} nats per token (thin line: each step); held-out text "
        f"ends at {last:.2f}."
    )
    return axes, alt


def separate_labels(axes: Axes) -> None:
    """Move the last two labels apart if their points are close together."""
    lower, upper = sorted(axes.texts[-2:], key=lambda text: text.xy[1])
    low, high = axes.get_ylim()
    if upper.xy[1] - lower.xy[1] < (high - low) / 12:
        lower.set_position((6, -8))
        upper.set_position((6, 8))


def rate_picture(metrics: MetricsLog) -> tuple[Axes, str]:
    """Learning rate against tokens."""
    tokens, rates = running_tokens(metrics), metrics.column("lr")
    title = "The learning rate warms up, stays, and decays"
    axes = show.figure(title, "tokens seen", "learning rate (AdamW)", height=2.6)
    axes.plot(tokens, rates, color=show.OURS)
    show.count_axis(axes)
    alt = (
        f"Learning rate: a short warm-up to {max(rates):.3g}, a plateau, a decay to 0."
    )
    return axes, alt


def gradient_picture(metrics: MetricsLog) -> tuple[Axes, str]:
    """Gradient norm against tokens, with the level of clipping."""
    tokens, norms = running_tokens(metrics), metrics.column("grad_norm")
    clipped = sum(norm > 1 for norm in norms) / len(norms)
    title = f"{clipped:.0%} of the steps had their gradient clipped"
    axes = show.figure(title, "tokens seen", "gradient norm", height=2.6)
    axes.plot(tokens, norms, color=show.OURS, alpha=0.4, linewidth=1)
    axes.plot(tokens, show.smooth(norms), color=show.OURS)
    show.yardstick(axes, 1.0, "clipped above")
    show.count_axis(axes)
    axes.set_ylim(0, sorted(norms)[int(0.99 * (len(norms) - 1))] * 1.3)
    alt = (
        f"Gradient norm at each step; {clipped:.0%} of the steps are above 1, clipped."
    )
    return axes, alt


def running_tokens(metrics: MetricsLog) -> list[int]:
    """Tokens seen after each step."""
    total, sums = 0, []
    for n in metrics.column("tokens"):
        total += n
        sums.append(total)
    return sums


def machine_room(model: GPT, metrics: MetricsLog, T: int) -> str:
    """Speed and cost in one paragraph."""
    tokens, seconds = sum(metrics.column("tokens")), sum(metrics.column("seconds"))
    flops = flops_per_token(model.config, T)
    parts = count_parameters(model.config)
    return (
        f"{parts['embedding']:,} of the {parts['total']:,} parameters are the "
        f"embedding table. Training a token takes {flops / 1e6:.2f} million "
        f"floating-point operations; {tokens / seconds:,.0f} tokens per second are "
        f"{flops * tokens / seconds / 1e9:.0f} billion operations per second. "
        "Checkpoint, tokenizer and logs lie beside this page."
    )


if __name__ == "__main__":
    picture_for_readme(*sys.argv[1:3])
