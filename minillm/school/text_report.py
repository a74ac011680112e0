"""The tour's page: what was measured, drawn and put into words.

Every sentence with a number is made from the run; whether the model beats a yardstick
is computed before it is said.
"""

from pathlib import Path

from minillm.model import GPT, count_parameters, flops_per_token
from minillm.school import pictures
from minillm.school.pipeline import HEADER, Run
from minillm.school.report import Page, words
from minillm.training import MetricsLog


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
    page.picture(*pictures.bits_picture(scores))
    page.text(words("bits"), "note")
    page.heading("How it learned")
    page.picture(*pictures.loss_picture(metrics, looks))
    page.heading("What it wrote on the way")
    for look in looks.records:
        caption = (
            f"after {look['tokens']:,} tokens, held-out loss {look['heldout_loss']:.2f}"
        )
        page.sample(look["prompt"], look["sample"], caption)
    page.heading("Behind the scenes")
    page.picture(*pictures.rate_picture(metrics))
    page.picture(*pictures.gradient_picture(metrics))
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


def listed(names: list[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["gzip", "xz", "5-gram"])
    'gzip, xz and 5-gram'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


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
