"""Our trainer and our exported files against Hugging Face's own."""

import json
import pydoc_data.topics
import random

import pytest

from minillm.data.bpe import train_bpe
from minillm.data.huggingface import byte_alphabet
from minillm.data.pieces import PATTERN, split
from minillm.data.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pre_tokenizers = tokenizers.pre_tokenizers

ENGLISH = "\n".join(list(pydoc_data.topics.topics.values())[:40])
HINDI = "नमस्ते दुनिया, हिन्दी में लिखा " * 40  # GPT-2's own cuts would break it
TOKENIZER = Tokenizer.train([ENGLISH, HINDI], 2048)

TEXTS = [
    "",
    " ",
    "  two spaces on each side  ",
    "tabs\tand\r\nlines\n\n\n",
    "don't 'quote' it, they'll 12,345.67",
    "👩‍👩‍👧‍👦🇫🇷🏳️‍🌈 emoji 😀😀",
    "naïve Ünïcödé e\u0301 東京タワー नमस्ते שלום สวัสดี 한국어",
    HINDI,
    "\x00\x1f\x7f\x85\xa0\u200b\u2028\ufeff\U0010ffff",
    "Hello , world ! It 's odd .",
    "<|im_end",
]
WITH_SPECIAL = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a <|pad|> b<|endoftext|>",
    "<|pad|><|pad|><|endoftext|><|endoftext|>",
]


def random_texts(n: int) -> list[str]:
    rng = random.Random(1)
    characters = [
        lambda: chr(
            rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 1114112)])
        ),
        lambda: chr(rng.randrange(32, 127)),
        lambda: rng.choice(" \n\t'"),
        lambda: rng.choice(ENGLISH),
    ]
    return [
        "".join(rng.choice(characters)() for _ in range(rng.randrange(1, 60)))
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.to_huggingface(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_merges_equal_those_of_the_hugging_face_trainer_one_by_one():
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Listing the bytes first gives them the ids 0 to 255, on which ties depend.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=list(byte_alphabet()),
        show_progress=False,
        min_frequency=0,
    )
    engine.train_from_iterator([ENGLISH], trainer)
    model = json.loads(engine.to_str())["model"]
    merges = [(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]]
    assert train_bpe(ENGLISH, 2048) == merges


def test_cuts_are_the_same_in_the_c_engine_of_hugging_face():
    cut = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    for text in TEXTS + random_texts(2000):
        assert [piece for piece, _ in cut.pre_tokenize_str(text)] == split(text)


def test_the_byte_alphabet_is_theirs():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_the_exported_tokenizer_encodes_alike(theirs):
    for text in TEXTS + random_texts(1000) + [ENGLISH[:50_000]]:
        assert theirs.encode(text) == TOKENIZER.encode(text), text


def test_the_exported_tokenizer_decodes_alike(theirs):
    for text in TEXTS + random_texts(300):
        assert theirs.decode(TOKENIZER.encode(text)) == text
    rng = random.Random(2)
    for _ in range(300):  # ids of a model gone wild, mostly invalid UTF-8
        ids = rng.choices(range(TOKENIZER.vocab_size), k=10)
        assert theirs.decode(ids) == TOKENIZER.decode(ids)


def test_special_tokens_agree_when_both_sides_read_them_or_neither_does(theirs):
    for text in WITH_SPECIAL:
        allowed = TOKENIZER.encode(text, TOKENIZER.special_names)
        assert theirs.encode(text) == allowed
        assert theirs.decode(allowed) == text
        ordinary = theirs.encode(text, split_special_tokens=True)
        assert ordinary == TOKENIZER.encode(text)


def test_the_parts_of_special_tokens_survive_the_export(theirs):
    assert len(theirs) == TOKENIZER.vocab_size
    assert theirs.eos_token_id == TOKENIZER.eot
    assert theirs.pad_token_id == TOKENIZER.pad
    assert theirs.bos_token_id is None
    assert set(theirs.all_special_ids) == set(TOKENIZER.special_tokens.values())
    assert theirs.decode([TOKENIZER.eot], skip_special_tokens=True) == ""


def test_special_tokens_of_your_own_play_the_same_parts_after_the_export(tmp_path):
    own = Tokenizer((), special_names=("<|pad|>", "<bos>", "<|endoftext|>"))
    own.to_huggingface(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        (theirs.pad_token_id, theirs.eos_token_id) == (own.pad, own.eot) == (256, 258)
    )
    assert theirs.encode("a<bos>") == own.encode("a<bos>", ["<bos>"]) == [97, 257]
