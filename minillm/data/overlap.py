"""How much of one text stands in another: leaks from training into held-out text.

A loss on held-out text is honest only if that text was not read in training. The unit
here is the run of thirteen words: by chance it hardly ever occurs twice, so whoever has
seen one can recite it instead of understanding it.

    overlap(train, heldout) = share of the held-out words that stand in a run of
                              n words which also stands in train

Source of the 13: Brown et al., arXiv:2005.14165, appendix C.
"""

from collections.abc import Iterable, Iterator, Sequence

Run = tuple[str, ...]


def overlap(train: Iterable[str], heldout: Iterable[str], n: int = 13) -> float:
    """Share of the held-out words, 0 to 1, that a reader of ``train`` could recite.

    >>> overlap(["a b c d"], ["x a b c y z"], n=3)
    0.5
    """
    known = {run for text in train for run in _runs(text.split(), n)}
    counts = [_known_words(text.split(), known, n) for text in heldout]
    total = sum(words for _, words in counts)
    return sum(hits for hits, _ in counts) / total if total else 0.0


def drop_contained(
    documents: Iterable[str], limit: float = 0.2, n: int = 13
) -> Iterator[str]:
    """Leave out documents of which more than ``limit`` stands in longer ones.

    >>> list(drop_contained(["b c", "a b c d e", "e f"], n=2))
    ['a b c d e', 'e f']
    """
    known: set[Run] = set()
    for document in sorted(documents, key=lambda text: (-len(text), text)):
        words = document.split()
        hits, total = _known_words(words, known, n)
        if hits <= limit * total:
            known.update(_runs(words, n))
            yield document


def _known_words(words: Sequence[str], known: set[Run], n: int) -> tuple[int, int]:
    starts = [i for i, run in enumerate(_runs(words, n)) if run in known]
    return len({place for i in starts for place in range(i, i + n)}), len(words)


def _runs(words: Sequence[str], n: int) -> Iterator[Run]:
    return zip(*(words[i:] for i in range(n)), strict=False)
