"""Four domains that tell facts: biography, dialogue, table and JSON.

The same fact comes in several forms, so that what a model knows can be told apart from
how it was said. Each program says first what a reader has to know (how many rows, which
columns), and is then left with as few choices as possible. Segments begin with a space
or a sign, where every tokenizer cuts, so that nats can be counted token by token.
"""

from functools import cache

from minillm.world.lore import CITY, PERSON, Lore, Relation
from minillm.world.menus import Menu, menu
from minillm.world.recorder import Recorder

GO_ON = 0.6  # how likely one more fact follows
TWO_HOP = {
    "mayor": (" under which mayor does", " live?", ", governed by"),
    "river": (" by which river does", " live?", ", on the"),
}


def biography(r: Recorder, lore: Lore) -> None:
    """Facts about a person or a city, in any order, none twice.

    About Mira Tolan: Mira Tolan lives in Dorburg, keeps a cat.
    """
    kind, subject = r.choose(_subjects(lore))
    r.write(f": {subject}")  # names said twice teach to copy, which much builds on
    left = lore.of(kind)
    clause = r.choose(_clauses(left, "", 1.0))
    while clause:
        r.recall(subject, clause.name, clause.values.dressed(" "))
        left = tuple(relation for relation in left if relation is not clause)
        clause = r.choose(_clauses(left, ",", GO_ON))


@cache
def _subjects(lore: Lore) -> Menu:
    """A person in five of six biographies, otherwise a city."""
    people, cities = lore.who.dressed(" "), lore.which_city.dressed(" the city of ")
    weights = [5 * p for p in people.probabilities] + list(cities.probabilities)
    values = [(PERSON, n) for n in people.values] + [(CITY, n) for n in cities.values]
    return Menu(people.texts + cities.texts, tuple(weights), tuple(values))


@cache
def _clauses(left: tuple[Relation, ...], before: str, go_on: float) -> Menu:
    """The next fact's relation and phrase, or a full stop."""
    return _one_more(
        {before + phrase: r for r in left for phrase in r.phrases}, ".", go_on
    )


def _one_more(more: dict[str, Relation], end: str, go_on: float) -> Menu:
    """One of ``more`` with probability ``go_on``, else the end, of value None."""
    if not more:
        return Menu((end,), values=(None,))
    if go_on == 1:
        return Menu(tuple(more), values=tuple(more.values()))
    weights = [go_on / len(more)] * len(more) + [1 - go_on]
    return Menu((*more, end), tuple(weights), (*more.values(), None))


def dialogue(r: Recorder, lore: Lore) -> None:
    """A question and its answer, of one fact or of two that make a chain.

    Question: under which mayor does Mira Tolan live?
    Answer: Dorburg, governed by Ruso Natork.
    """
    relation, hop = r.choose(_openings(lore))
    if hop:
        person = r.choose(lore.who.dressed(" "))
        _, end, link = TWO_HOP[hop.name]
        r.write(f"{end}\nAnswer:")
        city = r.recall(person, "city", relation.values.dressed(" "))
        r.write(link)
        r.recall(city, hop.name, hop.values.dressed(" "))
    else:
        who = lore.who if relation.of == PERSON else lore.which_city
        subject = r.choose(who.dressed(" "))
        r.write(f"{relation.question[1]}\nAnswer:")
        r.recall(subject, relation.name, relation.values.dressed(" "))
    r.write(".")


@cache
def _openings(lore: Lore) -> Menu:
    """How a question begins; its value is the relation and, in chains, the next one."""
    relations, city = lore.relations, lore.relations["city"]
    single = {r.question[0]: (r, None) for r in relations.values()}
    chains = {start: (city, relations[name]) for name, (start, *_) in TWO_HOP.items()}
    both = single | chains
    return Menu(tuple(both), values=tuple(both.values()))


def table(r: Recorder, lore: Lore) -> None:
    """Two facts each of a few people.

    Table of 2: | name | city | job | Mira Tolan | Dorburg | baker | ...
    """
    rows = int(r.choose(menu(" 2", " 3", " 4", " 8")))
    r.write(":\n| name |")
    columns = [relation.name for relation in lore.of(PERSON)]
    first = r.choose(menu(*columns).dressed(" "))
    r.write(" |")
    others = [name for name in columns if name != first]
    second = r.choose(menu(*others).dressed(" "))
    for _ in range(rows):
        r.write(" |\n|")
        person = r.choose(lore.who.dressed(" "))
        for column in (first, second):
            r.write(" |")
            r.recall(person, column, lore.relations[column].values.dressed(" "))
    r.write(" |")


def json(r: Recorder, lore: Lore) -> None:
    """A record of one person, as valid JSON.

    {"name": "Mira Tolan", "city": "Dorburg", "pet": "cat"}
    """
    person = r.choose(lore.who.dressed(' "'))
    left = lore.of(PERSON)
    key = r.choose(_keys(left, 1.0))
    while key:
        r.recall(person, key.name, key.values.dressed(' "'))
        left = tuple(relation for relation in left if relation is not key)
        key = r.choose(_keys(left, GO_ON))


@cache
def _keys(left: tuple[Relation, ...], go_on: float) -> Menu:
    """The next key, or the closing brace."""
    return _one_more({f'", "{r.name}":': r for r in left}, '"}', go_on)
