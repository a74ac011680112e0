"""The pictures of a training run, each with a title that states what was found.

Every function returns the picture and its description in words, which becomes its
alternative text and its caption.
"""

from matplotlib.axes import Axes

from minillm.school import show
from minillm.training import MetricsLog


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
    show.count_axis(axes, log=True)
    axes.set_xlim(tokens[0], tokens[-1] * 2)
    ends = [(last, "held-out", show.RIVAL), (smooth[-1], "training", show.OURS)]
    show.spread_labels(axes, tokens[-1], ends)
    alt = (
        f"Loss against tokens on a logarithmic axis: training falls from {first:.2f} "
        f"to {smooth[-1]:.2f} nats per token (thin line: each step); held-out text "
        f"ends at {last:.2f}."
    )
    return axes, alt


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
