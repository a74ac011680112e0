"""Four domains that no memory helps with: story, arithmetic, task and list.

What they ask for follows from what stands in the document, so the answers are
predictable: 0 nats for whoever can reckon, copy or keep track of who is where. They
show what a model can *do*, as the facts show what it *knows*.
"""

from collections.abc import Iterator
from functools import cache

from minillm.world.lore import Lore
from minillm.world.menus import Menu, menu
from minillm.world.recorder import Recorder
from minillm.world.words import FOODS, LETTERS, PLACES, THINGS

CAST = 6  # first names that stories use
MOVES = 2  # at most, in a story
TASKS = {  # name: what its items are drawn from
    "copy": LETTERS,
    "reverse": LETTERS,
    "last": LETTERS,
    "upper": LETTERS,
    "sort": tuple("0123456789"),
}
# Copying is wanted most, because the other tasks are learned on top of it.
WHICH_TASK = Menu(tuple(f" {name}" for name in TASKS), (2, 1, 1, 1, 1), tuple(TASKS))


def arithmetic(r: Recorder, lore: Lore) -> None:
    """A sum or a difference, with the steps or without.

    Compute 17+15=32.    Compute 17+15: 17+10=27, 27+5=32.
    """
    a, sign = r.choose(_left_operands(lore.config.largest))
    b, worked = r.choose(_right_operands(lore.config.largest if sign == "+" else a))
    r.write(work(a, sign, b) if worked else f"{compute(a, sign, b)}.")


def compute(a: int, sign: str, b: int) -> int:
    """The result.

    >>> compute(17, "-", 15)
    2
    """
    return a + b if sign == "+" else a - b


def work(a: int, sign: str, b: int) -> str:
    """The steps behind the colon: the tens first, then the ones.

    >>> work(17, "+", 15)
    ' 17+10=27, 27+5=32.'
    """
    tens, ones = b // 10 * 10, b % 10
    between = compute(a, sign, tens)
    end = compute(between, sign, ones)
    return f" {a}{sign}{tens}={between}, {between}{sign}{ones}={end}."


@cache
def _left_operands(largest: int) -> Menu:
    values = [(n, sign) for n in range(largest + 1) for sign in "+-"]
    return Menu(tuple(f" {n}{sign}" for n, sign in values), values=tuple(values))


@cache
def _right_operands(largest: int) -> Menu:
    values = [(n, worked) for n in range(largest + 1) for worked in (False, True)]
    texts = tuple(f"{n}{':' if worked else '='}" for n, worked in values)
    return Menu(texts, values=tuple(values))


def task(r: Recorder, lore: Lore) -> None:
    """Something to do with a row of letters or digits.

    Task: reverse 3: k d a -> a d k.
    """
    name = r.choose(WHICH_TASK)
    length = int(r.choose(menu("2", "3", "4").dressed(" ")))
    r.write(":")
    items: list[str] = []
    for _ in range(length):  # all different, so that each can be found by its looks
        left = (item for item in TASKS[name] if item not in items)
        items.append(r.choose(menu(*left).dressed(" ")))
    r.write(f" -> {transform(name, items)}.")


def transform(name: str, items: list[str]) -> str:
    """What a task makes of its items.

    >>> [transform(name, ["b", "c", "a"]) for name in TASKS]
    ['b c a', 'a c b', 'a', 'B C A', 'a b c']
    """
    made = {
        "copy": items,
        "reverse": items[::-1],
        "upper": [item.upper() for item in items],
        "sort": sorted(items),
        "last": items[-1:],
    }
    return " ".join(made[name])


def story(r: Recorder, lore: Lore) -> None:
    """Two people move about; at the end one of them, or a thing, is somewhere.

    Once Mira was in the garden and Tolo was in the cellar. Mira took the lamp. Mira
    went to the forest. Now the lamp is in the forest.
    """
    cast = lore.first_names[:CAST]
    who = r.choose(menu(*cast).dressed(" "))
    at = {who: _place(r, " was in the")}
    r.write(" and")
    other = r.choose(menu(*(name for name in cast if name != who)).dressed(" "))
    at[other] = _place(r, " was in the")
    r.write(".")
    holder = r.choose(menu(who, other).dressed(" "))
    r.write(" took the")
    thing = r.choose(menu(*THINGS).dressed(" "))
    r.write(".")
    for mover in _movers(r, who, other):
        at[mover] = _place(r, " went to the", but=at[mover])
        r.write(".")
    asked = r.choose(menu(who, other, f"the {thing}").dressed(" "))
    r.write(f" is in the {at.get(asked, at[holder])}.")


def _place(r: Recorder, before: str, but: str = "") -> str:
    r.write(before)
    return r.choose(menu(*(place for place in PLACES if place != but)).dressed(" "))


def _movers(r: Recorder, who: str, other: str) -> Iterator[str]:
    """Who moves, one after the other, until " Now" comes, after two at most."""
    for _ in range(MOVES):
        text = r.choose(menu(f" {who}", f" {other}", " Now"))
        if text == " Now":
            return
        yield text[1:]
    r.write(" Now")


def shopping(r: Recorder, lore: Lore) -> None:
    """A list of goods, and how many they are together.

    List of 2: 3 plums, 5 pears; 8 in all.
    """
    length, total = int(r.choose(menu("2", "3", "4").dressed(" "))), 0
    for place in range(length):
        r.write("," if place else ":")
        total += int(r.choose(menu(*"123456").dressed(" ")))
        r.choose(menu(*FOODS).dressed(" "))
    r.write(f"; {total} in all.")
