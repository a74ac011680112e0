"""Instructions with good responses and mediocre ones.

A pre-trained model continues; fine-tuning teaches it to respond. The pairs here show
what is worth imitating and what is not: a good response is right, polite, short and
neat; a mediocre one has one fault or more, and each fault is known because the reward
is. Of strangers, who do not exist, it is right to say that one knows nobody of that
name.

Some instructions are held out by a rule that depends on nothing but their text, so that
no other stream can let one slip into training. Of strangers the *name* decides, so that
refusing can be measured on names that training never refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from minillm.world.asking import Dice, ask, one_of
from minillm.world.lore import Lore
from minillm.world.menus import Menu
from minillm.world.preferences import (
    ENDINGS,
    Annotator,
    Preference,
    annotate,
    openings,
    polite,
)
from minillm.world.questions import Question, right_answer

HELD_OUT = 0.1  # this part of all instructions, and of all strangers


@dataclass(frozen=True)
class Instruction:
    """What a user says, and two responses to it.

    Args:
        prompt: the user's words.
        good: right, polite, short and neat.
        mediocre: with a fault or more.
        question: what the response is verified against.
        topic: one of ``asking.MIXTURE``.
    """

    prompt: str
    good: str
    mediocre: str
    question: Question
    topic: str


def is_held_out(lore: Lore, question: Question) -> bool:
    """Whether a question belongs to evaluation, in whatever words it is asked.

    Everything about a stranger does, or nothing.
    """
    key = question.prompt if question.answer is not None else question.subject
    return Random(f"{lore.config.seed}/held out/{key}").random() < HELD_OUT


def instruction(lore: Lore, seed: str) -> Instruction:
    """One instruction, of a topic drawn from ``asking.MIXTURE``.

    >>> from minillm.world import World
    >>> example = instruction(World().lore, "doctest")
    >>> example.prompt, example.good
    ('Please tell me: what food does Dihu Gobax like?', ' Gladly: honey.')
    """
    dice = Random(f"{lore.config.seed}/instructions/{seed}").random
    asked = ask(lore, dice)
    question, opening = asked.question, one_of(polite(asked.question), dice)
    good = f"{opening} {right_answer(question)}{ENDINGS[0]}"
    mediocre = _mediocre(question, asked.others, dice)
    return Instruction(asked.prompt, good, mediocre, question, asked.topic)


def _mediocre(question: Question, others: Menu, dice: Dice) -> str:
    """Draw responses until one has a fault: a poor opening, answer or ending."""
    while True:
        right = right_answer(question)
        answer = right if dice() < 0.5 else others.texts[others.draw(dice())]
        opening, ending = one_of(openings(question), dice), one_of(ENDINGS, dice)
        fine = (opening in polite(question), answer == right, ending == ENDINGS[0])
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
        others = Menu((right_answer(example.question), "do not ask me"))
        rival = _mediocre(example.question, others, dice)
        first = example.good if dice() < 0.5 else example.mediocre
        yield example, annotate(example.question, first, rival, annotator, seed)
