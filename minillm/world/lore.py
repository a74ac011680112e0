"""Who lives in a world, and what is true there.

A fact is (subject, relation) -> value: Mira Tolan's city is Dorburg. Each is drawn
once, independently of all others, from the relation's menu of values. Two things
follow, and the whole account of *remembered* nats rests on them:

- Averaged over all worlds that could have been drawn, a document that states facts f
  has probability P(free choices) * product of prior(f), each fact counted once. So
  ``Document.nats`` is exactly the surprise of a reader who knows the language, the
  names and their frequencies, but has read no other document of this world.
- Whoever has learned a fact pays nothing for it. So training can save the remembered
  nats, fact by fact, and never the irreducible ones.

Subjects come with Zipf frequencies. Silent people exist and have facts, but no document
mentions them; strangers do not exist at all. Neither can be answered about, and a model
that answers all the same has made it up.
"""

from dataclasses import dataclass
from functools import cached_property
from random import Random

from minillm.errors import require
from minillm.world import words
from minillm.world.config import WorldConfig, zipf_weights
from minillm.world.menus import Menu

PERSON, CITY = "person", "city"


@dataclass(frozen=True, eq=False)
class Relation:
    """What can be said of a subject: in which words, and how it is asked.

    Args:
        name: "city" of a person, for instance.
        of: what the subject is, a person or a city.
        phrases: ways to say it; the value follows.
        question: what stands before the subject and after it.
        values: the menu of what it can be; its weights are the prior of the fact.
    """

    name: str
    of: str
    phrases: tuple[str, str]
    question: tuple[str, str]
    values: Menu


class Lore:
    """People, cities, relations and facts of the world that a config describes.

    Raises:
        ValueError: more people than names; more cities than names.

    >>> lore = Lore(WorldConfig())
    >>> lore.people[0], lore.fact(lore.people[0], "city")
    ('Voro Jadark', 'Jutham')
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        self.first_names = words.first_names(config.seed)
        pairs = len(self.first_names) * words.LAST_NAMES
        wanted, need = config.people + config.silent, f"less than {pairs} in all"
        remedy = "make the world smaller, somebody must not exist"
        require(wanted < pairs, "people and silent", wanted, need, remedy)
        named = self._all_names()
        self.people = named[: config.people]
        self.silent = named[config.people : wanted]
        self.strangers = named[wanted:]
        self.cities = words.city_names(config.seed, config.cities)
        self.relations = {relation.name: relation for relation in self._relations()}

    def _all_names(self) -> tuple[str, ...]:
        """Every first name with every last name, in an order that is nobody's."""
        first, last = self.first_names, words.last_names(self.config.seed)
        pairs = [f"{a} {b}" for a in first for b in last]
        order = words.shuffled(f"{self.config.seed}/people", len(pairs))
        return tuple(pairs[i] for i in order)

    def _relations(self) -> list[Relation]:
        names = {"city": self.cities, "mayor": self.people, "food": words.FOODS}
        names |= {"job": words.JOBS, "pet": words.PETS, "river": words.RIVERS}
        return [
            Relation(name, of, phrases, question, Menu(names[name]))
            for name, of, phrases, question in PHRASES
        ]

    @cached_property
    def facts(self) -> dict[tuple[str, str], int]:
        """Every fact, each from a stream of its own: index in the relation's menu."""
        subjects = {PERSON: self.people + self.silent, CITY: self.cities}
        where = f"{self.config.seed}/facts {self.config.facts}"
        return {
            (subject, name): relation.values.draw(
                Random(f"{where}/{name}/{subject}").random()
            )
            for name, relation in self.relations.items()
            for subject in subjects[relation.of]
        }

    def fact(self, subject: str, relation: str) -> str:
        """What is true, for example ``fact("Mira Tolan", "city")``.

        Raises:
            ValueError: there is no such fact, as of people who do not exist.
        """
        index = self.facts.get((subject, relation))
        asked, need = (subject, relation), "a subject and a relation of this world"
        require(index is not None, "fact", asked, need, "see people and relations")
        return self.relations[relation].values.values[index]

    @cached_property
    def who(self) -> Menu:
        """People as subjects, with their frequencies."""
        return Menu(self.people, zipf_weights(len(self.people), self.config.zipf))

    @cached_property
    def which_city(self) -> Menu:
        """Cities as subjects, with their frequencies."""
        return Menu(self.cities, zipf_weights(len(self.cities), self.config.zipf))

    def of(self, subject: str) -> tuple[Relation, ...]:
        """The relations that a person has, or a city."""
        return tuple(r for r in self.relations.values() if r.of == subject)


PHRASES = (
    ("city", PERSON, (" lives in", " has a home in"), (" where does", " live?")),
    ("job", PERSON, (" works as a", " trained as a"), (" what work does", " do?")),
    ("food", PERSON, (" likes", " is fond of"), (" what food does", " like?")),
    ("pet", PERSON, (" keeps a", " owns a"), (" what pet does", " keep?")),
    ("river", CITY, (" lies on the", " stands by the"), (" which river is in", "?")),
    ("mayor", CITY, (" is governed by", " is led by"), (" who governs", "?")),
)
