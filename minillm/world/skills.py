"""Four domains that no memory helps with: story, arithmetic, task and list.

What they ask for follows from what stands in the document, so the answers are
predictable: 0 nats for whoever can reckon, copy or keep track of who is where. They
show what a model can *do*, as the facts show what it *knows*.
"""

from functools import cache

from minillm.world.lore import Lore
from minillm.world.recorder import Menu, Recorder, menu
from minillm.world.words import FOODS, LETTERS, PLACES, THINGS

CAST = 12  # first names that stories use
MOVES = (1, 2, 3)  # how many things happen in a story
TASKS = ("copy", "reverse", "upper", "sort", "last")


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

    Task: reverse 4: k d a m -> m a d k.
    """
    name = r.choose(menu(*TASKS).dressed(" "))
    length = int(r.choose(menu("3", "4", "5", "6").dressed(" ")))
    r.write(":")
    alphabet = tuple("0123456789") if name == "sort" else LETTERS
    items = [r.choose(menu(*alphabet).dressed(" ")) for _ in range(length)]
    r.write(f" -> {transform(name, items)}.")


def transform(name: str, items: list[str]) -> str:
    """What a task makes of its items.

    >>> [transform(name, ["b", "c", "a"]) for name in TASKS]
    ['b c a', 'a c b', 'B C A', 'a b c', 'a']
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


def _movers(r: Recorder, who: str, other: str):
    """Who moves, one after the other, until " Now" comes, after three at most."""
    for move in range(MOVES[-1] + 1):
        end = () if move < MOVES[0] else (" Now",)
        go = (f" {who}", f" {other}") if move < MOVES[-1] else ()
        text = r.choose(menu(*go, *end))
        if text == " Now":
            return
        yield text[1:]


def shopping(r: Recorder, lore: Lore) -> None:
    """A list of goods, and how many they are together.

    List of 2: 3 plums, 5 pears; 8 in all.
    """
    length, total = int(r.choose(menu("2", "3", "4").dressed(" "))), 0
    for place in range(length):
        r.write("," if place else ":")
        total += int(r.choose(menu(*"123456789").dressed(" ")))
        r.choose(menu(*FOODS).dressed(" "))
    r.write(f"; {total} in all.")
