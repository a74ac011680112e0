"""How much of one text stands in another: leaks from training into held-out text.

A loss on held-out text is honest only if that text was not read in training. The unit
here is the run of thirteen words: by chance it hardly ever occurs twice, so whoever has
seen one can recite it instead of understanding it.

    overlap(train, heldout) = share of the held-out words that stand in a run of
                              n words which also stands in train

Source of the 13: Brown et al., arXiv:2005.14165, appendix C.
"""

from collections.abc import Iterable


def overlap(train: Iterable[str], heldout: Iterable[str], n: int = 13) -> float:
    """Share of the held-out words, 0 to 1, that a reader of ``train`` could recite.

    >>> overlap(["a b c d"], ["x a b c y z"], n=3)
    0.5
    """
    known = {run for text in train for run in _runs(text.split(), n)}
    texts = [text.split() for text in heldout]
    hits = sum(_known_words(words, known, n) for words in texts)
    return hits / max(sum(len(words) for words in texts), 1)


def drop_contained(documents: list[str], limit: float = 0.1, n: int = 13) -> list[str]:
    """Leave out documents of which more than ``limit`` stands in longer ones.

    >>> drop_contained(["b c", "a b c d e", "e f"], n=2)
    ['a b c d e', 'e f']
    """
    known, kept = set(), set()
    for document in sorted(documents, key=lambda text: (-len(text), text)):
        words = document.split()
        if _known_words(words, known, n) <= limit * len(words):
            known.update(_runs(words, n))
            kept.add(document)
    return [document for document in documents if document in kept]


def _known_words(words: list[str], known: set[tuple[str, ...]], n: int) -> int:
    starts = [i for i, run in enumerate(_runs(words, n)) if run in known]
    return len({place for i in starts for place in range(i, i + n)})


def _runs(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)
