"""The words of the language: common ones by hand, names from syllables.

Names are made up, so that no model has met them before, and nothing about them can be
guessed: whatever it says about Mira Tolan, it was told. They are prefix-free, as all
that stands in a menu must be.
"""

from random import Random

from minillm.errors import require


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


JOBS = _words(
    "baker miller tailor sailor doctor teacher lawyer hunter painter singer mason "
    "shepherd barber plumber carpenter gardener printer soldier weaver potter merchant "
    "farmer banker judge"
)
FOODS = _words(
    "plums bread cheese pears beans rice soup honey cherries peppers lentils mushrooms "
    "walnuts grapes noodles carrots figs melons spinach turnips"
)
PETS = _words(
    "cat dog horse goat parrot rabbit sheep donkey pigeon turtle canary hedgehog "
    "falcon camel duck"
)
RIVERS = _words(
    "Brenta Lorne Tarth Movel Quill Sorva Dunneck Weil Kesper Yarrow Pelm Zinder"
)
PLACES = _words("garden kitchen harbour market library stable tower cellar")
THINGS = _words("lamp rope basket hammer mirror letter blanket bucket")
LETTERS = tuple("abdefgklmnst")

CONSONANTS, VOWELS = tuple("bdfghjklmnprstvz"), tuple("aeiou")
LAST_ENDINGS = _words("nd rk lm sk th x ns lt rn ck")
CITY_ENDINGS = _words("burg ford ham mouth stad vik gard bridge")
FIRST_NAMES, LAST_NAMES = 40, 60  # how many; a person is one pair of the 2,400


def first_names(seed: str) -> tuple[str, ...]:
    """Names such as Mira: two open syllables."""
    patterns = (CONSONANTS, VOWELS, CONSONANTS, VOWELS)
    return _made_up(f"{seed}/first names", patterns, FIRST_NAMES)


def last_names(seed: str) -> tuple[str, ...]:
    """Names such as Tolark: an open syllable and a closed one."""
    patterns = (CONSONANTS, VOWELS, CONSONANTS, VOWELS, LAST_ENDINGS)
    return _made_up(f"{seed}/last names", patterns, LAST_NAMES)


def city_names(seed: str, n: int) -> tuple[str, ...]:
    """Names such as Dorburg.

    Raises:
        ValueError: more cities than names.
    """
    patterns = (CONSONANTS, VOWELS, tuple("lmnrst"), CITY_ENDINGS)
    limit = 400
    require(n <= limit, "cities", n, f"at most {limit}", "make the world smaller")
    return _made_up(f"{seed}/cities", patterns, n)


def shuffled(seed: str, n: int) -> list[int]:
    """0 to n - 1 in an order that only ``random()`` decides.

    ``Random.shuffle`` is not promised to stay the same from Python to Python.

    >>> shuffled("a", 5)
    [1, 4, 0, 2, 3]
    """
    dice = Random(seed).random
    keys = [dice() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def _made_up(seed: str, patterns: tuple, n: int) -> tuple[str, ...]:
    """n words, a part from each pattern, none of which begins another."""
    dice, names = Random(seed).random, []
    while len(names) < n:
        parts = (pattern[int(dice() * len(pattern))] for pattern in patterns)
        name = "".join(parts).capitalize()
        if not any(name.startswith(old) or old.startswith(name) for old in names):
            names.append(name)
    return tuple(names)
