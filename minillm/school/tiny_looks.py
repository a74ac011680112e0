"""Looking at a model of TinyWorld while it learns: how far from the floor, and in what?

Loss says how far. The truth says in what: rules, facts or free choices. And because it
is known how often each person is talked about, recall can be asked for by frequency.
"""

from minillm.evaluation.asking import accuracy, ask
from minillm.evaluation.floor import KnownText
from minillm.school.tinytext import TinyText
from minillm.training import MetricsLog, Trainer
from minillm.world.lore import PERSON, Lore
from minillm.world.questions import Question, fact_question

PARTS = (0.01, 0.03, 0.06, 0.1, 0.16, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of all steps
RANKS = ((1, 10), (11, 40), (41, 100), (101, 200), (201, 400))
GROUPS = tuple(f"{low} to {high}" for low, high in RANKS)
FEW = 20  # people of each group who are asked about


class TinyLook:
    """Now and then during training: the excess over the floor, and recall by rank.

    Both are recorded beside the metrics. Nothing is drawn from the global generators,
    so a run that is watched trains exactly like one that is not.
    """

    def __init__(self, run, text: TinyText, trainer: Trainer):
        self.tokenizer, accounts = text.tokenizer, text.test.accounts[:400]
        self.known = KnownText(text.test.documents[:400], accounts, text.tokenizer.eot)
        self.questions = by_rank(text.world.lore, FEW)
        self.log = MetricsLog(run.folder / "looks.jsonl", before=trainer.step + 1)

    def __call__(self, trainer: Trainer) -> None:
        """Look, if it is time to."""
        steps = trainer.config.steps  # it may have been planned anew
        if trainer.step not in {max(round(part * steps), 1) for part in PARTS}:
            return
        excess = self.known.excess(trainer.model)
        tokens = sum(trainer.metrics.column("tokens"))
        asked = [q for questions in self.questions.values() for q in questions]
        answers = ask(trainer.model, self.tokenizer, asked, 12)
        recall = {
            group: accuracy([a for a in answers if a.question in questions])
            for group, questions in self.questions.items()
        }
        record = {"step": trainer.step, "tokens": tokens, "excess": excess.total}
        self.log.append(record | excess.parts | {"recall": recall})


def by_rank(lore: Lore, people: int | None = None) -> dict[str, list[Question]]:
    """Every fact of the people of each group of ranks, or of some of them.

    >>> from minillm.world import World
    >>> questions = by_rank(World().lore, people=3)
    >>> [(group, len(asked)) for group, asked in questions.items()][:2]
    [('1 to 10', 12), ('11 to 40', 12)]
    """
    groups = {}
    for group, (low, high) in zip(GROUPS, RANKS, strict=True):
        persons = lore.people[low - 1 : high]
        stride = max(1, len(persons) // (people or len(persons)))
        persons = persons[::stride][:people]
        groups[group] = [
            fact_question(lore, person, relation.name)
            for person in persons
            for relation in lore.of(PERSON)
        ]
    return groups
