"""The tour's first measurement: what the pre-trained model pays, knows and can do.

Each row of the table has its truth beside it: the floor; all facts, by how often they
were stated; sums and tasks; and how sure a model may be about people who do not exist.
"""

from statistics import fmean

from minillm.evaluation.asking import (
    Answer,
    accuracy,
    ask,
    calibration_error,
    confidence,
)
from minillm.evaluation.floor import Excess
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tiny_looks import by_rank
from minillm.school.tinytext import TinyText
from minillm.world.lore import PERSON
from minillm.world.questions import (
    Question,
    fact_question,
    skill_questions,
    two_hop_question,
)

SKILL_NAMES = {
    "arithmetic": "arithmetic",
    "worked": "arithmetic, in steps",
    "task": "tasks (copy, reverse, ...)",
}
NOBODY, SKILLS = 60, 300  # how many are asked about, and how many are asked


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
