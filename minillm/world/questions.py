"""Questions whose answers can be checked, because the truth is known.

A prompt is the beginning of a document, so that a model that was only pre-trained can
be asked: it goes on with the answer. What makes a question hard is attached to it: how
often its subject is talked about, and how many facts must be put together.

A verifier is a reward, and whatever it lets pass will be learned. So an answer is right
if it *is* the right answer, not if it holds it somewhere: who lists all cities has
named the right one too, and knows nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from minillm.errors import require
from minillm.world.lore import PERSON, Lore
from minillm.world.skills import TASKS, compute, transform, work
from minillm.world.telling import TWO_HOP

STRANGER = None  # the answer to a question about nobody
REFUSAL = "I know nobody of that name"  # and the right response to it


@dataclass(frozen=True)
class Question:
    """A prompt and its answer.

    Args:
        prompt: the beginning of a document.
        answer: what goes on; None if there is none, as about people who do not exist.
        kind: "fact", "two-hop", "arithmetic", "worked" or "task".
        subject: who or what is asked about.
        rank: of the subject by frequency, from 1; None for skills, and for subjects
            that no document mentions.
    """

    prompt: str
    answer: str | None
    kind: str
    subject: str = ""
    rank: int | None = None


def fact_question(lore: Lore, subject: str, relation: str) -> Question:
    """Ask for one fact, also of silent people and of strangers.

    Raises:
        ValueError: a relation that there is not.

    >>> from minillm.world import World
    >>> lore = World().lore
    >>> question = fact_question(lore, lore.people[0], "city")
    >>> question.prompt, question.answer, question.rank
    ('Question: where does Voro Jadark live?\\nAnswer:', 'Jutham', 1)
    """
    need = f"one of {', '.join(lore.relations)}"
    require(relation in lore.relations, "relation", relation, need, "choose one")
    before, after = lore.relations[relation].question
    prompt = f"Question:{before} {subject}{after}\nAnswer:"
    known = (subject, relation) in lore.facts
    answer = lore.fact(subject, relation) if known else STRANGER
    return Question(prompt, answer, "fact", subject, _rank(lore, subject))


def two_hop_question(lore: Lore, person: str, relation: str) -> Question:
    """Ask for a fact of the city where somebody lives; the answer names both.

    >>> from minillm.world import World
    >>> lore = World().lore
    >>> two_hop_question(lore, lore.people[0], "river").answer
    'Jutham, on the Brenta'
    """
    need = f"one of {', '.join(TWO_HOP)}"
    require(relation in TWO_HOP, "relation", relation, need, "choose one")
    before, after, link = TWO_HOP[relation]
    prompt, answer = f"Question:{before} {person}{after}\nAnswer:", STRANGER
    if (person, "city") in lore.facts:
        city = lore.fact(person, "city")
        answer = f"{city}{link} {lore.fact(city, relation)}"
    return Question(prompt, answer, "two-hop", person, _rank(lore, person))


def _rank(lore: Lore, subject: str) -> int | None:
    for names in (lore.people, lore.cities):
        if subject in names:
            return names.index(subject) + 1
    return None


def fact_questions(lore: Lore) -> Iterator[Question]:
    """Every one-hop question about the people that documents talk about."""
    for person in lore.people:
        for relation in lore.of(PERSON):
            yield fact_question(lore, person, relation.name)


def arithmetic_question(a: int, sign: str, b: int, worked: bool = False) -> Question:
    """Ask for a result, or for the steps to it.

    >>> arithmetic_question(17, "+", 15).prompt
    'Compute 17+15='
    """
    if worked:
        steps = work(a, sign, b).strip(" .")
        return Question(f"Compute {a}{sign}{b}:", steps, "worked")
    return Question(f"Compute {a}{sign}{b}=", f"{compute(a, sign, b)}", "arithmetic")


def task_question(name: str, items: list[str]) -> Question:
    """Ask for a task.

    >>> task_question("reverse", ["k", "d", "a"])
    Question(prompt='Task: reverse 3: k d a ->', answer='a d k', kind='task', ...)
    """
    require(name in TASKS, "name", name, f"one of {', '.join(TASKS)}", "choose one")
    prompt = f"Task: {name} {len(items)}: {' '.join(items)} ->"
    return Question(prompt, transform(name, items), "task")


def skill_questions(lore: Lore, n: int, stream: str) -> Iterator[Question]:
    """n questions of arithmetic and tasks, in turns, from a stream of their own."""
    largest = lore.config.largest
    for index in range(n):
        dice = Random(f"{lore.config.seed}/questions/{stream}/{index}").random
        if index % 2 == 0:
            a, b = sorted((int(dice() * (largest + 1)) for _ in range(2)), reverse=True)
            sign, worked = "+-"[dice() < 0.5], dice() < 0.5
            yield arithmetic_question(a, sign, b, worked)
        else:
            name, length = list(TASKS)[int(dice() * len(TASKS))], 2 + int(dice() * 3)
            left, items = list(TASKS[name]), []
            for _ in range(length):
                items.append(left.pop(int(dice() * len(left))))
            yield task_question(name, items)


def right_answer(question: Question) -> str:
    """What is right to respond: the answer, or ``REFUSAL`` if there is none.

    >>> right_answer(Question("Question: where does Nobody live?", None, "fact"))
    'I know nobody of that name'
    """
    return REFUSAL if question.answer is None else question.answer


def verify(question: Question, response: str) -> bool:
    """Whether a response is the answer: no more, no less, and a full stop if you like.

    Steps of a worked sum may differ from ours, if each is true, the first begins with
    the first operand, and the last gives the result. A question without an answer is
    answered rightly by ``REFUSAL`` alone, and no other question is.

    >>> question = arithmetic_question(17, "+", 15)
    >>> [verify(question, said) for said in (" 32.", "32", "31 32", "32. 33.", "032")]
    [True, True, False, False, False]
    """
    said = response.strip()
    said = said[:-1] if said.endswith(".") else said
    if question.kind == "worked":
        return _follows(question, said)
    return said == right_answer(question)


def _follows(question: Question, said: str) -> bool:
    """Whether each step is true, begins where the last one ended, and ends right."""
    operands = re.match(r"Compute (\d+)([+-])(\d+):", question.prompt)
    here, sign, b = int(operands[1]), operands[2], int(operands[3])
    end = compute(here, sign, b)
    for step in said.split(", "):
        parts = re.fullmatch(r"([0-9]{1,6})([+-])([0-9]{1,6})=(-?[0-9]{1,6})", step)
        if not parts or int(parts[1]) != here or parts[2] != sign:
            return False
        here = int(parts[4])
        if here != compute(int(parts[1]), sign, int(parts[3])):
            return False
    return here == end
