"""What users ask for, in their own words.

Documents say "Question: where does Mira Tolan live? Answer:" and "Compute 17+15="; a
user says "Please tell me: what is 17+15?". To bring what was learned in one form into
the other is what fine-tuning on instructions is for. Six topics, drawn from
``MIXTURE``: facts of people and of cities, two facts that make a chain, arithmetic,
tasks, and questions about strangers, to whom everything that could be said is made up.

People are drawn as often as documents mention them. Silent people, who exist but are
never mentioned, are asked about nowhere here: they are for evaluation alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from minillm.world.lore import CITY, PERSON, Lore
from minillm.world.menus import Menu, menu
from minillm.world.questions import (
    Question,
    arithmetic_question,
    fact_question,
    task_question,
    two_hop_question,
)
from minillm.world.skills import TASKS, transform
from minillm.world.telling import TWO_HOP

FORMS = ("{}", "Please tell me: {}", "I would like to know {}")
TASK_FORMS = {
    "copy": "copy these {}: {}",
    "reverse": "reverse these {}: {}",
    "last": "give the last of these {}: {}",
    "upper": "write these {} in capitals: {}",
    "sort": "sort these {}: {}",
}
WISHES = ("{}", "Please {}", "I would like you to {}")  # the forms of tasks

Dice = Callable[[], float]
_Drawn = tuple[Question, str, Menu]  # a question, words for it, other answers


@dataclass(frozen=True, eq=False)
class Asked:
    """A question as a user puts it.

    Args:
        question: what responses are verified against.
        prompt: the user's words.
        others: answers of the right form, most of them wrong.
        topic: one of ``MIXTURE``.
    """

    question: Question
    prompt: str
    others: Menu
    topic: str


def ask(lore: Lore, dice: Dice) -> Asked:
    """Draw a topic, a question and the words for it.

    >>> from random import Random
    >>> from minillm.world import World
    >>> asked = ask(World().lore, Random("doctest").random)
    >>> asked.topic, asked.prompt, asked.question.answer
    ('task', 'Please reverse these 3: t f m', 'm f t')
    """
    topic = MIXTURE.draw(dice())
    question, words, others = MIXTURE.values[topic](lore, dice)
    forms = WISHES if question.kind == "task" else FORMS
    prompt = one_of(forms, dice).format(words)
    return Asked(question, prompt, others, MIXTURE.texts[topic])


def one_of(options, dice: Dice):
    """One of a sequence, all equally likely.

    >>> one_of("abc", lambda: 0.5)
    'b'
    """
    return options[int(dice() * len(options))]


def _person(lore: Lore, dice: Dice) -> _Drawn:
    person, relation = lore.people[lore.who.draw(dice())], one_of(lore.of(PERSON), dice)
    return _spoken(fact_question(lore, person, relation.name), relation.values)


def _city(lore: Lore, dice: Dice) -> _Drawn:
    city = lore.cities[lore.which_city.draw(dice())]
    relation = one_of(lore.of(CITY), dice)
    return _spoken(fact_question(lore, city, relation.name), relation.values)


def _two_hop(lore: Lore, dice: Dice) -> _Drawn:
    person, hop = lore.people[lore.who.draw(dice())], one_of(tuple(TWO_HOP), dice)
    return _spoken(two_hop_question(lore, person, hop), _chains(lore, hop))


def _stranger(lore: Lore, dice: Dice) -> _Drawn:
    """What is asked of people, asked of nobody; the others are what one may make up."""
    nobody = one_of(lore.strangers, dice)
    if dice() < len(TWO_HOP) / (len(TWO_HOP) + len(lore.of(PERSON))):
        hop = one_of(tuple(TWO_HOP), dice)
        return _spoken(two_hop_question(lore, nobody, hop), _chains(lore, hop))
    relation = one_of(lore.of(PERSON), dice)
    return _spoken(fact_question(lore, nobody, relation.name), relation.values)


def _arithmetic(lore: Lore, dice: Dice) -> _Drawn:
    """A sum, or a difference that is not negative, as in documents."""
    largest = lore.config.largest
    a, b = (int(dice() * (largest + 1)) for _ in range(2))
    sign = one_of("+-", dice)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    words = f"what is {a}{sign}{b}?"
    others = menu(*(f"{n}" for n in range(2 * largest + 1)))
    return arithmetic_question(a, sign, b), words, others


def _task(lore: Lore, dice: Dice) -> _Drawn:
    """Two to four different items, as in documents, and what else could be answered."""
    name, n = one_of(tuple(TASK_FORMS), dice), 2 + int(dice() * 3)
    items: list[str] = []
    while len(items) < n:
        items.append(one_of([x for x in TASKS[name] if x not in items], dice))
    words = TASK_FORMS[name].format(n, " ".join(items))
    others = Menu(tuple({transform(other, items): None for other in TASK_FORMS}))
    return task_question(name, items), words, others


# What is asked for, and how often.
MIXTURE = Menu(
    ("person", "city", "two-hop", "arithmetic", "task", "stranger"),
    weights=(0.40, 0.08, 0.12, 0.14, 0.14, 0.12),
    values=(_person, _city, _two_hop, _arithmetic, _task, _stranger),
)


def _spoken(question: Question, others: Menu) -> _Drawn:
    """Without the marks of a document, "Question:" and "Answer:"."""
    words = question.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    return question, words, others


@cache
def _chains(lore: Lore, hop: str) -> Menu:
    """Every answer that a two-hop question can have."""
    link = TWO_HOP[hop][2]
    return Menu(tuple(f"{city}{link} {lore.fact(city, hop)}" for city in lore.cities))
