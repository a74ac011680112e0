"""BPE against a trainer too slow to be wrong, and against the five usual mistakes."""

import pydoc_data.topics
import random
import warnings
from collections import Counter
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import bpe
from minillm.data.bpe import (
    count_pieces,
    encode,
    encode_piece,
    merge,
    token_bytes,
    train_bpe,
)
from minillm.data.pieces import DIGIT, LETTER, PATTERN, SPACE, split

ENGLISH = "\n".join(list(pydoc_data.topics.topics.values())[:12])


def naive_merges(text: str, vocab_size: int) -> list:
    """Count every pair anew at every step: the definition itself."""
    words = [list(piece.encode()) for piece in split(text)]
    merges = []
    for new_id in range(256, vocab_size):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [merge(word, best, new_id) for word in words]
        merges.append(best)
    return merges


def quietly(*args, **kwargs) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train_bpe(*args, **kwargs)


# --- the definition -----------------------------------------------------------------


def test_training_equals_recounting_everything_on_english():
    assert train_bpe(ENGLISH[:8000], 330) == naive_merges(ENGLISH[:8000], 330)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aab \n1é", min_size=1, max_size=60))
def test_training_equals_recounting_everything_on_runs_and_ties(text):
    assert quietly(text, 275) == naive_merges(text, 275)


def test_the_textbook_example():
    merges = train_bpe("aaabdaaabac", 259)
    assert encode("aaabdaaabac", merges) == [258, 100, 258, 97, 99]


def test_no_two_tokens_spell_the_same_bytes():
    spelled = token_bytes(train_bpe(ENGLISH, 1024))
    assert len(set(spelled)) == len(spelled) == 1024


# --- the five usual mistakes --------------------------------------------------------


def test_merging_a_whole_pass_at_once_would_learn_other_merges():
    text = "aaabdaaabac"
    counts = Counter(pairwise(text.encode()))
    one_pass = sorted(counts, key=lambda pair: (-counts[pair], pair))[:3]
    assert train_bpe(text, 259) == naive_merges(text, 259) != one_pass


def test_overlapping_pairs_merge_once_from_the_left():
    def overlapping(ids, pair, new_id):
        return [new_id for found in pairwise(ids) if found == pair]

    assert merge([97] * 3, (97, 97), 256) == [256, 97]
    assert overlapping([97] * 3, (97, 97), 256) == [256, 256]  # a letter too many
    assert merge([97] * 4, (97, 97), 256) == [256, 256]


def test_a_tie_goes_to_the_smallest_pair_whatever_the_order_of_the_text():
    texts = ["zy", "ab", "mn", "ab", "zy"]
    counts = Counter(texts)
    first_seen = max(counts, key=counts.__getitem__)
    assert first_seen == "zy"  # what the order of a dictionary would have chosen
    for seed in range(5):
        random.Random(seed).shuffle(texts)
        assert train_bpe(texts, 258) == [(97, 98), (122, 121)]


def test_no_token_crosses_a_cut(monkeypatch):
    def crosses(merges):
        spelled = (token.decode("utf-8", "ignore") for token in token_bytes(merges))
        return [text for text in spelled if len(split(text)) > 1]

    assert crosses(train_bpe(ENGLISH, 600)) == []
    monkeypatch.setattr(bpe, "split", lambda text: [text])  # one piece, cut nowhere
    assert crosses(train_bpe(ENGLISH[:4000], 300)) != []


def test_encoding_follows_the_order_of_learning_and_not_the_longest_match():
    def longest_match(text: bytes, spelled: list[bytes]) -> list[int]:
        ids = []
        while text:
            fits = [i for i, token in enumerate(spelled) if text.startswith(token)]
            ids.append(max(fits, key=lambda i: len(spelled[i])))
            text = text[len(spelled[ids[-1]]) :]
        return ids

    merges = train_bpe(["bc", "bc", "bc", "ab", "ab"], 258)
    assert token_bytes(merges)[256:] == [b"bc", b"ab"]
    assert encode("abc", merges) == [97, 256]  # a bc
    assert longest_match(b"abc", token_bytes(merges)) == [257, 99]  # ab c


# --- cutting ------------------------------------------------------------------------


def is_character(code: int) -> bool:
    return 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000


EDGES = [
    chr(code)
    for c in LETTER + SPACE + DIGIT + "'"
    for code in (ord(c) - 1, ord(c), ord(c) + 1)
    if is_character(code)
]
TRICKY = "\x85\xa0\u200b\u2028\x1c\x1f\u0300\u200d\ufe0f\u0660\u0130stdmlrve"


def hard_text(rng: random.Random) -> str:
    """White space, apostrophes, block edges and code points from everywhere."""
    characters = []
    for _ in range(rng.randrange(1, 40)):
        code = rng.randrange(rng.choice([0x80, 0x3000, 0x110000]))
        anywhere = chr(code) if is_character(code) else "'"
        pool = rng.choice([[anywhere], EDGES, TRICKY, SPACE, "'"])
        characters.append(rng.choice(pool))
    return "".join(characters)


def test_cuts_are_the_same_in_python_and_in_rust():
    """An encoder that knows every piece as one token shows where it cut."""
    rng = random.Random(0)
    texts = [hard_text(rng) for _ in range(3000)]
    pieces = {p.encode() for text in texts for p in split(text) if len(p.encode()) > 1}
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {piece: 256 + i for i, piece in enumerate(sorted(pieces))}
    rust = tiktoken.Encoding(
        "cuts", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for text in texts:
        ids = rust.encode_ordinary(text)
        theirs = [rust.decode_single_token_bytes(i) for i in ids]
        assert theirs == [piece.encode() for piece in split(text)], text


def test_a_million_spaces_do_not_overflow_the_stack_of_the_rust_engine():
    rust = tiktoken.Encoding(
        "bytes",
        pat_str=PATTERN,
        mergeable_ranks={bytes([b]): b for b in range(256)},
        special_tokens={},
    )
    assert len(rust.encode_ordinary(" " * 1_500_000 + "a")) == 1_500_001


@given(st.text())
def test_pieces_join_to_the_text(text):
    assert "".join(split(text)) == text


def test_what_counts_as_a_letter_a_digit_or_a_symbol():
    assert split("a\u00c0\u1fff\u2c00\u3040\U00020000z") == ["aÀ\u1fffⰀ\u3040𠀀z"]
    assert split("a×b÷c€d→e、f😀g\xa0h\u2bff") == list("a×b÷c€d→e、f😀g\xa0h\u2bff")
    assert split("x\t\n\v\f\ry") == ["x", "\t\n\v\f", "\r", "y"]
    assert split("in  2026") == ["in", " ", " ", "2", "0", "2", "6"]


def test_an_apostrophe_ends_a_word_but_does_not_cut_a_quoted_one():
    assert split("don't they'll") == ["don", "'t", " they", "'ll"]
    assert split("'string'") == ["'", "string", "'"]


def test_combining_marks_stay_with_their_word():
    assert split("नमस्ते दुनिया") == ["नमस्ते", " दुनिया"]
    assert split("“naïve”…") == ["“", "naïve", "”…"]


# --- round trips --------------------------------------------------------------------


MERGES = train_bpe(ENGLISH, 600)
RANKS = {pair: 256 + i for i, pair in enumerate(MERGES)}
SPELLED = token_bytes(MERGES)


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    assert b"".join(SPELLED[i] for i in encode(text, MERGES)) == text.encode()


@given(st.binary())
def test_any_bytes_survive_the_round_trip_even_those_that_are_no_text(raw):
    assert b"".join(SPELLED[i] for i in encode_piece(raw, RANKS)) == raw


# --- doors --------------------------------------------------------------------------


def test_256_tokens_are_the_bytes_and_no_merge():
    assert train_bpe("text", 256) == []


def test_a_text_without_pairs_gives_a_warning_and_a_smaller_vocabulary():
    with pytest.warns(UserWarning, match="257 tokens were learned instead of 300"):
        assert train_bpe(["ab", "ab"], 300) == [(97, 98)]


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ("text", 255, "vocab_size must be an int of at least 256"),
        ("text", 300.5, "vocab_size must be an int"),
        ("", 300, "texts must be at least one character"),
        ([], 300, "texts must be at least one character"),
        ("bad \ud800", 300, "lone surrogate at character 4"),
    ],
)
def test_bad_input_is_refused_at_the_door(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, vocab_size)


def test_bytes_are_no_text():
    with pytest.raises(TypeError, match="decode bytes first"):
        train_bpe([b"bytes"], 300)


def test_piece_counts_add_up_over_texts():
    assert count_pieces(["a b", "a"]) == {b"a": 2, b" b": 1}
