"""The pictures of a model of TinyWorld, each with a title that states what was found.

Every function returns the picture and, in words, its alternative text and caption.
"""

from statistics import pstdev

from matplotlib.axes import Axes

from minillm.alignment.held_out import Outcome
from minillm.evaluation.asking import Answer, confidence, reliability
from minillm.school import show
from minillm.school.tiny_looks import GROUPS
from minillm.school.tiny_lora import Found
from minillm.training import MetricsLog

KINDS = {
    "remembered": ("facts", show.RIVAL),
    "predictable": ("what follows", show.WARM),
    "irreducible": ("odds", show.OURS),
}
WAYS = {"sft": "full SFT", "lora": "LoRA", "qlora": "QLoRA"}
LEAST = 1e-3  # nats per token; below it a point is drawn here


def excess_picture(looks: MetricsLog) -> tuple[Axes, str]:
    """Nats per token above the floor, by kind of text, against tokens seen."""
    tokens = looks.column("tokens")
    first, last = looks.column("excess")[0], looks.column("excess")[-1]
    title = f"From {first:.1f} nats above the floor to {last:.2f}"
    axes = show.figure(title, "tokens seen", "nats per token above the floor")
    ends = []
    for kind, (name, color) in KINDS.items():
        values = [max(nats, LEAST) for nats in looks.column(kind)]
        axes.plot(tokens, values, "o-", color=color, markersize=4)
        ends.append((values[-1], name, color))
    axes.set_yscale("log")
    show.count_axis(axes, log=True)
    show.spread_labels(axes, tokens[-1], ends)
    axes.set_xlim(tokens[0], tokens[-1] * 3)
    told = ", ".join(
        f"{name} {looks.column(kind)[-1]:.3f}" for kind, (name, _) in KINDS.items()
    )
    alt = (
        f"Excess over the floor against tokens, both on logarithmic axes, by kind of "
        f"text. At the end, in nats per token: {told}. Zero is the best there can be."
    )
    return axes, alt


def recall_picture(looks: MetricsLog) -> tuple[Axes, str]:
    """Recall of facts against tokens seen, by how often people are mentioned."""
    tokens, recalls = looks.column("tokens"), looks.column("recall")
    curves = {group: [recall[group] for recall in recalls] for group in GROUPS}
    axes = show.figure(recall_title(tokens, curves), "tokens seen", "facts recalled")
    ends = []
    for i, (group, curve) in enumerate(curves.items()):
        color = show.shade(i / (len(curves) - 1))
        axes.plot(tokens, curve, "o-", color=color, markersize=4)
        ends.append((curve[-1], f"rank {group}", color))
    axes.plot([tokens[0], tokens[-1]], [1, 1], "--", color=show.TRUTH, linewidth=1.5)
    show.count_axis(axes, log=True)
    axes.set_ylim(-0.03, 1.06)
    show.spread_labels(axes, tokens[-1], ends)
    axes.set_xlim(tokens[0], tokens[-1] * 4)
    told = ", ".join(f"rank {group} {curve[-1]:.0%}" for group, curve in curves.items())
    alt = (
        "Facts recalled against tokens seen, for groups of people by how often they "
        f"are mentioned (rank 1 is the most frequent). At the end: {told}."
    )
    return axes, alt


def recall_title(tokens: list[int], curves: dict[str, list[float]]) -> str:
    """What the curves say, if they say it.

    >>> recall_title([1, 2, 3], {"often": [0.0, 0.9, 1.0], "rarely": [0.0, 0.1, 0.7]})
    'Frequent facts are learned first, rare facts last'
    >>> recall_title([1, 2], {"often": [0.0, 0.1], "rarely": [0.0, 0.2]})
    'Which facts were learned when'
    """
    half = [
        next((n for n, part in zip(tokens, curve, strict=True) if part >= 0.5), None)
        for curve in curves.values()
    ]
    reached = [n for n in half if n is not None]
    orderly = half[: len(reached)] == sorted(reached)  # the others come later, if ever
    if orderly and reached and (len(set(half)) > 1):
        return "Frequent facts are learned first, rare facts last"
    return "Which facts were learned when"


def confidence_picture(
    known: list[Answer], nobody: list[Answer], honest: float
) -> tuple[Axes, str]:
    """Accuracy against confidence, and how sure it is about people who do not exist."""
    bins = reliability([a.confidence for a in known], [a.right for a in known])
    sure = confidence(nobody)
    title = f"Of people who do not exist it is {sure:.0%} sure; {honest:.0%} is honest"
    axes = show.figure(title, "confidence in its answer", "part that is right")
    axes.plot([0, 1], [0, 1], "--", color=show.TRUTH, linewidth=1.5)
    axes.annotate(
        "as sure as right", (0.22, 0.25), color=show.TRUTH, rotation=26, ha="center"
    )
    axes.plot(*zip(*[b[:2] for b in bins], strict=True), "o-", color=show.OURS)
    show.label(axes, *bins[0][:2], "people in the text", show.OURS)
    axes.plot([sure], [0], "s", color=show.WARM, markersize=9, clip_on=False)
    show.label(axes, sure, 0.05, "people who do not exist", show.WARM)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.04)
    alt = (
        f"Accuracy of answers in bins of confidence, from {bins[0][0]:.0%} sure and "
        f"{bins[0][1]:.0%} right to {bins[-1][0]:.0%} sure and {bins[-1][1]:.0%} "
        "right; on the dashed line a model is as sure as it is right. Asked about "
        f"people who do not exist it is {sure:.0%} sure, and no answer is right."
    )
    return axes, alt


def alignment_picture(found: dict[str, Outcome]) -> tuple[Axes, str]:
    """True reward against the reward model's: the assistant, and what became of it."""
    rewards, before = {n.upper(): o.reward for n, o in found.items()}, found["sft"]
    names = ("reward by the reward model", "true reward")
    axes = show.figure(alignment_title(rewards), *names)
    colors, ends = (show.TRUTH, show.WARM, show.RIVAL, show.OURS), []
    for (name, one), color in zip(found.items(), colors, strict=True):
        axes.plot([before.proxy, one.proxy], [before.reward, one.reward], color=color)
        error = pstdev(one.rewards) / len(one.rewards) ** 0.5
        axes.errorbar(one.proxy, one.reward, error, fmt="o", color=color, markersize=9)
        ends.append((one.reward, f"{name.upper()}, KL {one.kl:.1f}", color))
    axes.margins(0.2)
    right = max(one.proxy for one in found.values())
    axes.set_xlim(right=right + 0.4 * (right - axes.get_xlim()[0]))
    show.spread_labels(axes, right, ends)
    told = "; ".join(
        f"{n.upper()} {o.reward:.2f} and {o.proxy:.2f}, KL {o.kl:.2f} nats"
        for n, o in found.items()
    )
    alt = (
        "True reward of sampled responses to held-out instructions against the reward "
        f"that the reward model gives them, each joined with the assistant: {told}. "
        "Bars are standard errors over instructions, of this one run."
    )
    return axes, alt


def cost_picture(found: dict[str, Found]) -> tuple[Axes, str]:
    """What each way of fine-tuning holds, and how much is right after it."""
    luck = "one run; with another seed another may be best"
    title = cost_title({name: one.cost.nbytes for name, one in found.items()})
    axes = show.figure(title, f"bytes held while training ({luck})", "", height=2.6)
    parts = {"weights": show.TRUTH, "gradients": show.WARM, "moments": show.OURS}
    told = []
    for (name, one), place in zip(found.items(), (2, 1, 0), strict=True):
        cost, left = one.cost, 0
        for part, color in parts.items():
            n = getattr(cost, part)
            axes.barh(place, n, left=left, color=color, height=0.6)
            if place == 2:  # the longest bar says what the colours are
                at = (left + n / 2, 2)
                axes.annotate(part, at, color="white", ha="center", va="center")
            left += n
        text = f"{one.right:.0%} right, {cost.trained:,} trained"
        show.label(axes, left, place, text, show.TEXT)
        told.append(f"{WAYS[name]} {left:,} bytes, {text}")
    axes.set_yticks((2, 1, 0), [WAYS[name] for name in found])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.6 * axes.dataLim.xmax)
    show.count_axis(axes)
    alt = (
        "Bytes of weights, gradients and the optimizer's moments, the part of held-out "
        "instructions that are answered rightly, and the parameters that are trained: "
        f"{'; '.join(told)}. This is {luck}."
    )
    return axes, alt


def cost_title(nbytes: dict[str, int]) -> str:
    """What the cheaper ways hold, as parts of what full fine-tuning does.

    >>> cost_title({"sft": 100, "lora": 40, "qlora": 25})
    'LoRA holds 40% of the bytes of full SFT, QLoRA 25%'
    """
    lora, qlora = (nbytes[name] / nbytes["sft"] for name in ("lora", "qlora"))
    return f"LoRA holds {lora:.0%} of the bytes of full SFT, QLoRA {qlora:.0%}"


def alignment_title(rewards: dict[str, float]) -> str:
    """Who gained most by the truth, if anybody did; the first is where all began.

    >>> alignment_title({"SFT": 3.9, "PPO": 3.85, "DPO": 4.0})
    'DPO gains most in true reward: from 3.90 to 4.00'
    >>> alignment_title({"SFT": 3.9, "PPO": 3.85})
    'None became better than SFT by the true reward'
    """
    first, best = next(iter(rewards)), max(rewards, key=rewards.get)
    if best == first:
        return f"None became better than {first} by the true reward"
    before, after = rewards[first], rewards[best]
    return f"{best} gains most in true reward: from {before:.2f} to {after:.2f}"
