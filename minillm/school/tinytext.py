"""TinyWorld as a model sees it: rows to train on, and documents to be measured with.

The tour, the studies and the trained models of the notebooks all begin here, so that
what one of them says of the floor holds for the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from minillm.data import Tokenizer
from minillm.data.packed import pack
from minillm.errors import require, require_count
from minillm.evaluation.floor import KnownText
from minillm.world import World, WorldConfig

LEARN_FROM = 20_000  # documents are enough for the tokenizer, which knows them all then


@dataclass(frozen=True, eq=False)
class TinyText:
    """A world, its tokenizer, rows to train on and known text to be measured with.

    Args:
        world: the world.
        tokenizer: learned from its training documents.
        rows: (R, T) ids; see ``minillm.data.packed``.
        test: documents of another stream, with the true price of each token.
        n_documents: how many the rows were made of.
    """

    world: World
    tokenizer: Tokenizer
    rows: Int[Tensor, "R T"]
    test: KnownText
    n_documents: int


def tiny_text(
    config: WorldConfig | None = None,
    documents: int = 170_000,
    test: int = 1500,
    vocab_size: int = 1024,
    T: int = 128,
    progress: bool = False,
) -> TinyText:
    """Let a world write, learn its tokenizer, fill rows, count the truth.

    Args:
        config: of the world.
        documents: to train on; about 19 tokens each.
        test: documents to measure with.
        vocab_size: of the tokenizer.
        T: tokens in a row.
        progress: show a bar.

    Raises:
        ValueError: a document is longer than T; small vocabularies make them so.

    >>> text = tiny_text(documents=500, test=5, vocab_size=800)
    >>> text.rows.shape[1], len(text.test.documents)
    (128, 5)
    """
    require_count(documents=documents, test=test)
    world = World(config)
    written: Iterable = world.documents(documents)
    written = tqdm(written, "writing", documents, disable=not progress, leave=False)
    texts = [document.text for document in written]
    tokenizer = Tokenizer.train(texts[:LEARN_FROM], vocab_size)
    rows = pack(tokenizer.encode_batch(texts), tokenizer.eot, T)
    known = KnownText.of(world.documents(test, "test"), tokenizer)
    longest = max(map(len, known.accounts)) + 2  # with an end-of-text on either side
    need, remedy = f"at least {longest}, to hold each document", "or learn more tokens"
    require(longest <= T, "T", T, need, remedy)
    return TinyText(world, tokenizer, rows.to(torch.int32), known, documents)
