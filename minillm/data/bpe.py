"""Byte-pair encoding: how text becomes a short sequence of whole numbers.

Bytes spell everything, but slowly: English takes five or six of them a word. BPE starts
from the 256 bytes and, step by step, gives the most frequent pair of neighbours an id
of its own:

    merge i:   pair = argmax over (a, b) of count(a, b)  ->  id 256 + i

Text is first cut into pieces (``minillm.data.pieces``) and no merge crosses a cut. To
encode, the same merges are applied to each piece in the order of learning.

Two choices that papers leave open are declared here. A tie goes to the smallest pair of
ids, as in Hugging Face tokenizers. Neighbours are counted with overlaps ("aaa" holds
two pairs) but merged without, from the left ("aaa" becomes [aa, a]).

Sources: Gage, "A New Algorithm for Data Compression" (1994); Sennrich et al.,
arXiv:1508.07909, algorithm 1; bytes as the alphabet: Radford et al., "Language Models
are Unsupervised Multitask Learners" (2019), section 2.2.
"""

import heapq
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from tqdm import tqdm

from minillm.data.pieces import split
from minillm.errors import require

Pair = tuple[int, int]


def train_bpe(
    texts: str | Iterable[str], vocab_size: int, progress: bool = False
) -> list[Pair]:
    """Learn the merges that give ``vocab_size`` tokens: 256 bytes, then one a merge.

    Warns and returns fewer merges if the text has no more pairs to offer.

    Args:
        texts: one text or several; pieces never reach from one into the next.
        vocab_size: number of tokens, at least 256.
        progress: show a bar on stderr.

    Returns:
        merges; ``merges[i]`` is the pair of ids that becomes id ``256 + i``.

    Raises:
        ValueError: a vocabulary under 256, or no text at all.
        TypeError: a text that is no ``str``.

    >>> train_bpe("aaabdaaabac", vocab_size=259)
    [(97, 97), (97, 98), (256, 257)]
    """
    enough = isinstance(vocab_size, int) and vocab_size >= 256
    require(enough, "vocab_size", vocab_size, "an int of at least 256", "ask for more")
    pairs = PairCounts(count_pieces(texts))
    merges: list[Pair] = []
    for new_id in tqdm(range(256, vocab_size), desc="BPE merges", disable=not progress):
        pair = pairs.most_frequent()
        if pair is None:
            learned = f"{new_id} tokens were learned instead of {vocab_size}"
            warnings.warn(f"{learned}: the text has no more pairs", stacklevel=2)
            break
        pairs.merge(pair, new_id)
        merges.append(pair)
    return merges


def count_pieces(texts: str | Iterable[str]) -> Counter[bytes]:
    """How often each piece occurs: a megabyte of English holds some 10,000 pieces.

    Training looks only at this table, so its cost grows with the number of different
    words and hardly with the amount of text.

    >>> count_pieces("so so, so so")
    Counter({b' so': 3, b'so': 1, b',': 1})
    """
    texts = [texts] if isinstance(texts, str) else texts
    counts = Counter(piece for text in texts for piece in split(text))
    require(bool(counts), "texts", texts, "at least one character", "give some text")
    return Counter({piece.encode(): n for piece, n in counts.items()})


class PairCounts:
    """The pieces as they stand, the count of each pair, and a heap to find the top.

    A merge changes only the pieces that hold the pair, so ``where`` remembers them.
    Counts of existing pairs can only fall; an entry of the heap may therefore be too
    high but never too low. It is corrected when it comes up, and not before.
    """

    def __init__(self, pieces: Mapping[bytes, int]):
        self.words = [list(piece) for piece in pieces]
        self.times = list(pieces.values())
        self.counts: dict[Pair, int] = defaultdict(int)
        self.where: dict[Pair, set[int]] = defaultdict(set)
        for index, (word, n) in enumerate(zip(self.words, self.times, strict=True)):
            for pair in pairwise(word):
                self.counts[pair] += n
                self.where[pair].add(index)
        self.heap = [(-n, pair) for pair, n in self.counts.items()]
        heapq.heapify(self.heap)

    def most_frequent(self) -> Pair | None:
        """The pair with the highest count, the smallest such pair in a tie."""
        while self.heap:
            negative, pair = heapq.heappop(self.heap)
            count = self.counts[pair]
            if count == -negative:
                return pair
            if count > 0:
                heapq.heappush(self.heap, (-count, pair))
        return None

    def merge(self, pair: Pair, new_id: int) -> None:
        """Replace ``pair`` by ``new_id`` in every piece and bring the counts up."""
        counts, where = self.counts, self.where
        created = set()
        for index in where.pop(pair):
            old, n = self.words[index], self.times[index]
            new = self.words[index] = merge(old, pair, new_id)
            for lost in pairwise(old):
                counts[lost] -= n
            for kept in pairwise(new):
                counts[kept] += n
                if new_id in kept:
                    created.add(kept)
                    where[kept].add(index)
        for fresh in created:
            heapq.heappush(self.heap, (-counts[fresh], fresh))


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each ``pair`` in ``ids`` by ``new_id``, from the left, without overlap.

    >>> merge([1, 1, 1, 2], (1, 1), 256)
    [256, 1, 2]
    """
    left, right = pair
    merged: list[int] = []
    for id_ in ids:
        if id_ == right and merged and merged[-1] == left:
            merged[-1] = new_id
        else:
            merged.append(id_)
    return merged


def encode(text: str, merges: Sequence[Pair]) -> list[int]:
    """Text to ids: cut, then merge within each piece in the order of learning.

    Slow and readable; ``Tokenizer.encode`` gives the same ids thirty times as fast.

    >>> encode("aaabdaaabac", [(97, 97), (97, 98), (256, 257)])
    [258, 100, 258, 97, 99]
    """
    ranks = {pair: 256 + i for i, pair in enumerate(merges)}
    pieces = [encode_piece(piece.encode(), ranks) for piece in split(text)]
    return [id_ for ids in pieces for id_ in ids]


def encode_piece(piece: bytes, ranks: Mapping[Pair, int]) -> list[int]:
    """Merge the earliest learned pair, again and again, until no pair is known.

    The order is the whole point: had the encoder taken the longest or the most frequent
    pair, it would cut words in ways that the model has never seen.
    """
    ids = list(piece)
    while known := [pair for pair in pairwise(ids) if pair in ranks]:
        earliest = min(known, key=lambda pair: ranks[pair])
        ids = merge(ids, earliest, ranks[earliest])
    return ids


def token_bytes(merges: Sequence[Pair]) -> list[bytes]:
    """What each id spells: 256 single bytes, then every merge the join of its parts.

    >>> token_bytes([(104, 101), (256, 108)])[256:]
    [b'he', b'hel']
    """
    spelled = [bytes([b]) for b in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    return spelled
