"""Nats per token: exact by trie, equal to brute force, refused where tokens cross."""

import math
from collections import defaultdict
from itertools import pairwise

import pytest

from minillm.data import Tokenizer
from minillm.world import (
    ExactTokenNats,
    Menu,
    World,
    WorldConfig,
    attributed_nats,
    enumerate_documents,
    menu,
    sample,
)

TRAINING = "".join(d.text + "\n" for d in World().documents(3000))
TOKENIZER = Tokenizer.train(TRAINING, 600)


def small(r):
    """Names that share first tokens; different lengths in tokens; loops."""
    for _ in range(int(r.choose(menu(" 1", " 2")))):
        r.choose(Menu((" Ann Rox", " Ann Rolf", " Ann Bo", " Bo Li"), (4, 3, 2, 1)))
        r.choose(menu(" ran", " sat", ","))
    r.write(".")


def brute_force(documents, encode):
    """-ln P(token | tokens before) for each position, by summing over all documents."""
    weight = defaultdict(float)
    for document in documents:
        ids = tuple(encode(document.text))
        for n in range(len(ids) + 1):
            weight[ids[:n]] += math.exp(-document.nats)
    for document in documents:
        ids = tuple(encode(document.text))
        steps = [weight[ids[:n]] for n in range(len(ids) + 1)]
        yield document, [math.log(a / b) for a, b in pairwise(steps)]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Tokenizer(merges=())])
def test_the_trie_equals_brute_force_over_all_token_sequences(tokenizer):
    exact = ExactTokenNats(tokenizer.encode)
    documents = list(enumerate_documents(small))
    assert len(documents) == 12 + 144
    for document, expected in brute_force(documents, tokenizer.encode):
        found = [token.nats for token in exact(document)]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("language", ["first", "second"])
def test_the_tokens_of_a_document_sum_to_its_nats_kind_by_kind(language):
    exact = ExactTokenNats(TOKENIZER.encode)
    for document in World(WorldConfig(language=language)).documents(1000, "sum"):
        tokens = exact(document)
        assert [token.token for token in tokens] == TOKENIZER.encode(document.text)
        for kind in ("remembered", "irreducible", "predictable"):
            total = math.fsum(token.nats for token in tokens if token.kind == kind)
            assert total == pytest.approx(document.total(kind), abs=1e-9)


def test_a_seam_within_a_token_is_refused():
    def joined(r):
        r.choose(menu(" the", " in"))
        r.write("re")

    exact = ExactTokenNats(lambda text: Tokenizer.train("there " * 9, 265).encode(text))
    with pytest.raises(ValueError, match="attributed_nats"):
        exact(sample(joined, "a"))


def test_an_alternative_that_would_melt_into_what_follows_is_refused():
    def risky(r):  # behind " a" the dot stands alone, behind "," it does not
        r.choose(Menu((" a", ","), (1, 1e-9)))
        r.write(".")

    tokenizer = Tokenizer.train(",." * 9 + " a a", 262)
    document = sample(risky, "a")
    assert document.text == " a."
    with pytest.raises(ValueError, match="alternative must be cut off"):
        ExactTokenNats(tokenizer.encode)(document)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_attributed_nats_sum_to_the_document_whatever_the_tokens(width):
    for document in World().documents(200, "attributed"):
        raw = document.text.encode()
        tokens = [raw[i : i + width] for i in range(0, len(raw), width)]
        accounts = attributed_nats(document, tokens)
        assert len(accounts) == len(tokens)
        assert math.fsum(n for _, n in accounts) == pytest.approx(document.nats)


def test_attributed_nats_go_to_the_token_that_a_choice_begins_in():
    document = sample(small, "a")
    tokens = TOKENIZER.encode(document.text)
    accounts = attributed_nats(document, [TOKENIZER.decode_bytes([t]) for t in tokens])
    assert [nats for _, nats in accounts if nats] == pytest.approx(
        [segment.nats for segment in document.segments if segment.nats]
    )
    with pytest.raises(ValueError, match="bytes of the document"):
        attributed_nats(document, [b"other"])
