"""A second language: the same thoughts in other words.

Every word is spelled anew, letter by letter, vowels by vowels and consonants by
consonants; names, digits and signs stay. Nothing is added and nothing lost, so a
translated document has the nats of the original, segment for segment. What differs is
everything that a model sees. Names stay because they are what the two languages share:
a fact learned in one can be asked for in the other.
"""

import re
from collections.abc import Iterable

from minillm.errors import require
from minillm.world.recorder import Document, Menu

VOWELS, SHIFTED_VOWELS = "aeiou", "iuoea"
CONSONANTS, SHIFTED_CONSONANTS = "bcdfghjklmnpqrstvwxyz", "kvtpzrgmbslhxdnjfycqw"


class SecondLanguage:
    """Translates texts, menus and documents, and back.

    Args:
        names: words that stay as they are, capital letter first.

    Raises:
        ValueError: (when translating) a word that becomes a name, and could not be told
            from it.

    >>> language = SecondLanguage(names=["Mira"])
    >>> language.translate("Once Mira was in the garden.")
    'Elvu Mira yin ol jru zidtul.'
    >>> language.back(language.translate("Once Mira was in the garden."))
    'Once Mira was in the garden.'
    """

    def __init__(self, names: Iterable[str]):
        old, new = VOWELS + CONSONANTS, SHIFTED_VOWELS + SHIFTED_CONSONANTS
        old, new = old + old.upper(), new + new.upper()
        self._there, self._home = str.maketrans(old, new), str.maketrans(new, old)
        self.names = frozenset(names)
        self._menus: dict[Menu, Menu] = {}

    def translate(self, text: str) -> str:
        """Into the second language; as many characters as before."""
        spelled = self._respell(text, self._there)
        unlike, need = self.back(spelled) == text, "without words that become names"
        require(unlike, "text", text, need, "use another seed for the names")
        return spelled

    def back(self, text: str) -> str:
        """Into the first language."""
        return self._respell(text, self._home)

    def document(self, document: Document) -> Document:
        """The same document in the second language: the same spans, the same nats."""
        segments = [s._replace(menu=self.menu(s.menu)) for s in document.segments]
        return Document(self.translate(document.text), tuple(segments))

    def menu(self, menu: Menu | None) -> Menu | None:
        """The same choice in the second language (kept for next time)."""
        if menu is None:
            return None
        if menu not in self._menus:
            texts = tuple(self.translate(text) for text in menu.texts)
            self._menus[menu] = Menu(texts, menu.weights, menu.values)
        return self._menus[menu]

    def _respell(self, text: str, table: dict[int, int]) -> str:
        def spell(found: re.Match) -> str:
            word = found.group()
            return word if word in self.names else word.translate(table)

        return re.sub("[A-Za-z]+", spell, text)
