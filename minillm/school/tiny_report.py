"""The page of the tour on TinyWorld: what is true, what was measured, and the distance.

Every sentence with a number is made from the run; nothing is called good before it was
compared.
"""

import sys
from pathlib import Path

from minillm.alignment.held_out import Outcome, side_by_side
from minillm.evaluation.floor import Excess
from minillm.files import atomic_write
from minillm.model import GPT
from minillm.school import pictures, show, tiny_pictures
from minillm.school.pipeline import HEADER, Run
from minillm.school.report import Page, words
from minillm.school.text_report import machine_room
from minillm.school.tiny_lora import Found
from minillm.school.tiny_measure import honest_guess
from minillm.school.tiny_sft import Response
from minillm.school.tinytext import TinyText
from minillm.training import MetricsLog
from minillm.training.metrics import read_metrics
from minillm.world.recorder import Document


def write_report(
    run: Run,
    text: TinyText,
    model: GPT,
    metrics: MetricsLog,
    looks: MetricsLog,
    measured: dict,
    responses: list[Response],
    cheaper: dict[str, Found],
    aligned: dict[str, Outcome],
) -> Path:
    """Write ``report.html`` into the run's folder; return its path."""
    answers = measured["answers"]
    known = [a for kind, said in answers.items() if "rank" in kind for a in said]
    page = Page("A language model, measured against the truth")
    page.text(summary(measured["excess"], metrics, responses), "lead")
    page.heading("What the floor is")
    page.text(words("floor"))
    page.priced(priced(example(text)))
    page.text(words("kinds"))
    page.heading("How it came close")
    page.picture(*tiny_pictures.excess_picture(looks))
    page.text(words("excess"), "note")
    page.heading("What it knows")
    page.picture(*tiny_pictures.recall_picture(looks))
    page.heading("What it only seems to know")
    honest = honest_guess(text)
    page.picture(*tiny_pictures.confidence_picture(known, answers["nobody"], honest))
    page.text(words("nobody"), "note")
    responded(page, responses)
    economised(page, cheaper)
    compared(page, aligned)
    page.heading("Truth beside measurement, stage by stage")
    page.table(HEADER, [row for row in run.table() if row[0] != "report"])
    page.heading("Behind the scenes")
    page.picture(*pictures.rate_picture(metrics))
    page.picture(*pictures.gradient_picture(metrics))
    page.text(machine_room(model, metrics, model.config.context), "note")
    return page.write(run.folder / "report.html")


def responded(page: Page, responses: list[Response]) -> None:
    """What the fine-tuned model says, right or wrong as it comes."""
    page.heading("What it says after fine-tuning")
    for response in samples(responses):
        verdict = "right" if response.right else "wrong"
        caption = f"{response.instruction.topic}: {verdict}"
        page.sample(response.instruction.prompt, response.text, caption)


def economised(page: Page, found: dict[str, Found]) -> None:
    """What full SFT, LoRA and QLoRA hold, give and forget, side by side."""
    page.heading("The same lessons, with less")
    page.text(words("adapters"))
    page.picture(*tiny_pictures.cost_picture(found))
    names = [tiny_pictures.WAYS[name] for name in found]
    page.table(("", "truth", *names), cost_rows(list(found.values())))
    page.text(words("forgetting"), "note")


def cost_rows(found: list[Found]) -> list[tuple[str, ...]]:
    """A row for each number, a column for each way of fine-tuning.

    >>> from minillm.school.tiny_lora import Cost
    >>> full = Found(Cost(9, 36, 36, 72), [("right", "100%", "60%")], 0.6, 0.04, 1.5)
    >>> cost_rows([full])[0], cost_rows([full])[-1]
    (('parameters trained', '', '9'), ('right', '100%', '60%'))
    """
    costs = {"parameters trained": "trained", "bytes of weights": "weights"}
    costs |= {"bytes of gradients": "gradients", "bytes of moments": "moments"}
    costs |= {"bytes in all": "nbytes"}
    rows = [
        (metric, "", *(f"{getattr(one.cost, part):,}" for one in found))
        for metric, part in costs.items()
    ]
    for same in zip(*(one.rows for one in found), strict=True):
        rows.append((*same[0][:2], *(measured for *_, measured in same)))
    befores = [f"{one.before:.3f}" for one in found]
    rows.insert(-1, ("documents: excess before SFT", "0.000", *befores))
    return rows


def compared(page: Page, aligned: dict[str, Outcome]) -> None:
    """What became of it by PPO, DPO and GRPO."""
    page.heading("Better than what it imitated?")
    page.text(words("alignment"))
    page.picture(*tiny_pictures.alignment_picture(aligned))
    page.text(words("praise"), "note")
    for prompt, said, caption in side_by_side(aligned):
        page.sample(prompt, said, caption)


def summary(excess: Excess, metrics: MetricsLog, responses: list[Response]) -> str:
    """One paragraph: how close it came, and to what."""
    tokens, minutes = sum(metrics.column("tokens")), sum(metrics.column("seconds")) / 60
    right = sum(response.right for response in responses) / len(responses)
    return (
        f"After {minutes:.1f} minutes and {tokens:,} tokens the model pays "
        f"{excess.loss:.3f} nats per token where the best reader pays "
        f"{excess.floor:.3f}. Of the {excess.total:.3f} between them, "
        f"{excess.parts['remembered']:.3f} are facts that it does not know, "
        f"{excess.parts['predictable']:.3f} are rules that it cannot follow, and "
        f"{excess.parts['irreducible']:.3f} are odds that it misjudges. Fine-tuned, it "
        f"responds rightly to {right:.0%} of the instructions that were held out."
    )


def example(text: TinyText) -> Document:
    """A short document that has all three kinds: a biography of two or three facts."""
    documents = text.test.documents
    fitting = (
        document
        for document in documents
        if text.world.domain(document) == "biography" and 2 <= facts_in(document) <= 3
    )
    return next(fitting, documents[0])


def facts_in(document: Document) -> int:
    """How many facts a document states."""
    return sum(segment.kind == "remembered" for segment in document.segments)


def priced(document: Document) -> list[tuple[str, str, str]]:
    """(text, kind, nats) of each segment, for the page to mark."""
    return [
        (document.text[s.start : s.end], s.kind, f"{s.nats:.2f}" if s.nats else "")
        for s in document.segments
    ]


def samples(responses: list[Response], each: int = 2) -> list[Response]:
    """The first responses of each topic, right or wrong as they come."""
    by_topic: dict[str, list[Response]] = {}
    for response in responses:
        by_topic.setdefault(response.instruction.topic, []).append(response)
    return [r for topic in sorted(by_topic) for r in by_topic[topic][:each]]


def picture_for_readme(run_folder: str, path: str) -> None:
    """Draw which facts a finished run learned when into a PNG file."""
    looks = MetricsLog(None)
    looks.records += read_metrics(Path(run_folder, "looks.jsonl"))
    axes, _ = tiny_pictures.recall_picture(looks)
    with atomic_write(path) as temporary:
        temporary.write_bytes(show.png(axes))


if __name__ == "__main__":
    picture_for_readme(*sys.argv[1:3])
