"""Instructions with good responses and mediocre ones.

A pre-trained model continues; fine-tuning teaches it to respond. The pairs here show
what is worth imitating and what is not: a good response is right, polite, short and
neat; a mediocre one has one fault or more, and each fault is known because the reward
is. Some instructions are held out by a rule that depends on nothing but their text, so
that no other stream can let one slip into training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from minillm.world.lore import PERSON, Lore
from minillm.world.menus import Menu
from minillm.world.preferences import (
    ENDINGS,
    OPENINGS,
    POLITE,
    Annotator,
    Preference,
    annotate,
)
from minillm.world.questions import Question, arithmetic_question, fact_question

HELD_OUT = 0.1  # this part of all instructions
FORMS = ("{}", "Please tell me: {}", "I would like to know {}")


@dataclass(frozen=True)
class Instruction:
    """What a user says, and two responses to it.

    Args:
        prompt: the user's words.
        good: right, polite, short and neat.
        mediocre: with a fault or more.
        question: what the response is verified against.
    """

    prompt: str
    good: str
    mediocre: str
    question: Question


def is_held_out(lore: Lore, question: Question) -> bool:
    """Whether a question belongs to evaluation, in whatever words it is asked."""
    seed = f"{lore.config.seed}/held out/{question.prompt}"
    return Random(seed).random() < HELD_OUT


def instruction(lore: Lore, seed: str) -> Instruction:
    """One instruction: two of three ask for a fact, the others for a result.

    >>> from minillm.world import World
    >>> example = instruction(World().lore, "doctest")
    >>> example.prompt, example.good
    ('Please tell me: what food does Dihu Gobax like?', ' Gladly: honey.')
    """
    dice = Random(f"{lore.config.seed}/instructions/{seed}").random
    if dice() < 2 / 3:
        person = lore.people[lore.who.draw(dice())]
        relations = lore.of(PERSON)
        relation = relations[int(dice() * len(relations))]
        question = fact_question(lore, person, relation.name)
        asked = " ".join(question.prompt.removeprefix("Question:").split()[:-1])
        others = relation.values
    else:
        largest = lore.config.largest
        a, b = (int(dice() * (largest + 1)) for _ in range(2))
        question, asked = arithmetic_question(a, "+", b), f"what is {a} plus {b}?"
        others = Menu(tuple(str(n) for n in range(2 * largest + 1)))
    prompt = FORMS[int(dice() * len(FORMS))].format(asked)
    good = f"{POLITE[int(dice() * len(POLITE))]} {question.answer}{ENDINGS[0]}"
    return Instruction(prompt, good, _mediocre(question, others, dice), question)


def _mediocre(question: Question, others: Menu, dice) -> str:
    """Draw responses until one has a fault: a poor opening, answer or ending."""
    while True:
        right = dice() < 0.5
        answer = question.answer if right else others.texts[others.draw(dice())]
        opening = OPENINGS[int(dice() * len(OPENINGS))]
        ending = ENDINGS[int(dice() * len(ENDINGS))]
        fine = (opening in POLITE, answer == question.answer, ending == ENDINGS[0])
        if not all(fine):
            return f"{opening} {answer}{ending}"


def instructions(
    lore: Lore, n: int, stream: str = "train", held_out: bool = False
) -> Iterator[Instruction]:
    """The first n instructions of a stream, either none or only held-out ones."""
    found, index = 0, 0
    while found < n:
        example = instruction(lore, f"{stream}/{index}")
        index += 1
        if is_held_out(lore, example.question) == held_out:
            found += 1
            yield example


def preferences(
    lore: Lore, n: int, annotator: Annotator, stream: str = "train"
) -> Iterator[tuple[Instruction, Preference]]:
    """n instructions with a verdict on two responses, one good or both mediocre."""
    for index, example in enumerate(instructions(lore, n, f"preferences/{stream}")):
        seed = f"{lore.config.seed}/verdicts/{stream}/{index}"
        dice = Random(f"{seed}/pair").random
        others = Menu((example.question.answer, "nobody knows"))
        rival = _mediocre(example.question, others, dice)
        first = example.good if dice() < 0.5 else example.mediocre
        yield example, annotate(example.question, first, rival, annotator, seed)
