"""The main job on TinyWorld, where every measurement stands beside the truth.

world     the language writes documents and says what each of them is worth
tokenize  a byte-level BPE learns its vocabulary
train     a Llama-style model learns to predict the next token
measure   how far from the floor, and in what? what does it know, can it reckon?
          is it as sure as it is right, and what does it say of nobody?
sft       the same model learns to respond to instructions
respond   held-out instructions, true reward, people who do not exist
report    a table and a page with pictures
"""

from pathlib import Path
from statistics import fmean

from minillm.data.packed import Rows
from minillm.evaluation.asking import (
    Answer,
    accuracy,
    ask,
    calibration_error,
    confidence,
)
from minillm.evaluation.floor import Excess
from minillm.model import GPT
from minillm.school.options import TourOptions
from minillm.school.pipeline import Run
from minillm.school.pretraining import pretrain
from minillm.school.tiny_looks import TinyLook, by_rank
from minillm.school.tiny_sft import fine_tune, respond_to_all
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import Trainer
from minillm.world.lore import PERSON
from minillm.world.questions import (
    Question,
    fact_question,
    skill_questions,
    two_hop_question,
)

TRAINING = {"lr": 1e-2, "matrix_lr": 1e-2, "weight_decay": 0.0}  # see studies/01
PER_MINUTE = 200_000  # documents; more than a laptop reads in a minute
MOST = 600_000  # then they are read again
SKILL_NAMES = {
    "arithmetic": "arithmetic",
    "worked": "arithmetic, in steps",
    "task": "tasks (copy, reverse, ...)",
}
NOBODY, SKILLS = 60, 300  # how many are asked about, and how many are asked


def tiny_tour(run: Run, options: TourOptions, resumed: bool) -> Path:
    """Take the model through the stages for TinyWorld; return the page."""
    text = write(run, options)
    rows = Rows(text.rows, options.batch, options.seed)

    def look_at(trainer: Trainer) -> TinyLook:
        return TinyLook(run, text, trainer)

    model, metrics, looks = pretrain(
        run, options, text.tokenizer, rows, look_at, resumed, **TRAINING
    )
    measured = measure(run, text, model)
    assistant = fine_tune(run, options, text, model, resumed)
    responses = respond_to_all(run, text, assistant)
    from minillm.school.tiny_report import write_report  # matplotlib takes a second

    with run.stage("report", "drawing what was measured"):
        return write_report(run, text, model, metrics, looks, measured, responses)


def write(run: Run, options: TourOptions) -> TinyText:
    """Let the world write, and learn its tokenizer."""
    n = min(max(2_000, int(PER_MINUTE * options.minutes)), MOST)
    with run.stage("world", f"{n:,} documents, each with what it is worth"):
        text = tiny_text(
            None, n, 1500, options.vocab_size, options.context, progress=True
        )
        text.tokenizer.save(run.folder / "tokenizer.json")
    documents = text.test.documents
    n_tokens = sum(len(account) + 1 for account in text.test.accounts)
    floor, nats = (sum(getattr(d, x) for d in documents) for x in ("floor", "nats"))
    run.add("world", "floor (nats per token)", f"{floor / n_tokens:.3f}", "")
    facts = f"{nats / n_tokens:.3f}"
    run.add("world", "the same for who knows no fact", facts, "")
    run.add("world", "tokens to train on", "", f"{text.rows.numel():,}")
    return text


def measure(run: Run, text: TinyText, model: GPT) -> dict:
    """Compare the model with the truth: excess, recall, skills, confidence."""
    with run.stage("measure", "documents and questions that training has not seen"):
        excess = text.test.excess(model)
        asked = questions(text)
        answers = {kind: ask(model, text.tokenizer, asked[kind]) for kind in asked}
    tell_excess(run, excess)
    tell_answers(run, text, answers)
    whole = {"total": excess.total, "error": excess.error}
    run.results["excess"] = excess.parts | whole
    return {"excess": excess, "answers": answers}


def questions(text: TinyText) -> dict[str, list[Question]]:
    """What the model is asked: facts by rank, chains, skills, and about nobody."""
    lore = text.world.lore
    facts = {f"rank {group}": asked for group, asked in by_rank(lore).items()}
    return facts | {
        "two-hop": [two_hop_question(lore, p, "river") for p in lore.people[:100]],
        "skills": list(skill_questions(lore, SKILLS, "tour")),
        "nobody": [
            fact_question(lore, person, relation.name)
            for person in lore.strangers[:NOBODY]
            for relation in lore.of(PERSON)
        ],
    }


def tell_excess(run: Run, excess: Excess) -> None:
    """Rows for the table: loss beside floor, and what lies between them."""
    total = f"{excess.total:.3f} ± {excess.error:.3f}"
    run.add(
        "measure", "loss (nats per token)", f"{excess.floor:.3f}", f"{excess.loss:.3f}"
    )
    run.add("measure", "excess over the floor", "0.000", total)
    words = {
        "predictable": "excess: what follows (rules, skills)",
        "remembered": "excess: what is so (facts)",
        "irreducible": "excess: what is free (odds)",
    }
    for kind, metric in words.items():
        run.add("measure", metric, "0.000", f"{excess.parts[kind]:.3f}")


def tell_answers(run: Run, text: TinyText, answers: dict[str, list[Answer]]) -> None:
    """Rows for the table: what it knows, what it can do, how sure it is."""
    by_kind = {f"facts recalled, {k}": v for k, v in answers.items() if "rank" in k}
    known = [answer for said in by_kind.values() for answer in said]
    by_kind["two facts in a chain"] = answers["two-hop"]
    for kind, name in SKILL_NAMES.items():
        by_kind[name] = [a for a in answers["skills"] if a.question.kind == kind]
    for name, said in by_kind.items():
        run.add("measure", name, "100%", f"{accuracy(said):.0%}")
    error = calibration_error([a.confidence for a in known], [a.right for a in known])
    run.add("measure", "calibration error, facts", "0.00", f"{error:.2f}")
    guess = honest_guess(text)
    sure = confidence(answers["nobody"])
    run.add("measure", "confidence about nobody", f"{guess:.2f} or less", f"{sure:.2f}")
    run.results["recall"] = {k: accuracy(v) for k, v in answers.items()}
    run.results["confidence"] = {k: confidence(v) for k, v in answers.items()}
    run.results["calibration error"] = error


def honest_guess(text: TinyText) -> float:
    """The confidence that any answer deserves where nothing can be known: the prior."""
    relations = text.world.lore.of(PERSON)
    return fmean(1 / len(relation.values.texts) for relation in relations)
