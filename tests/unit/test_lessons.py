"""Lessons: nothing is lost silently, and no question stands on both sides."""

import json
import random
import unicodedata

import pytest

from minillm.data import Message, Tokenizer, conversation
from minillm.data.chat import encode_chat
from minillm.data.templates import CHATML
from minillm.finetuning import LLAMA3, Lessons, prepare_lessons, similarity
from minillm.finetuning.formats import write_openai
from minillm.finetuning.lessons import is_held_out, question, read_lines
from minillm.finetuning.likeness import ngrams, normalise

TOKENIZER = Tokenizer(merges=())
NAMES = TOKENIZER.special_names + LLAMA3.special_names
THINGS = ["cats", "dogs", "rivers", "old clocks", "bread", "the sea"]
VERBS = ["like", "fear", "need", "forget"]
ENDS = ["", "!", " in the long winter of a far land", " and why is that so?"]


def prepared(lines, **settings) -> Lessons:
    return prepare_lessons(lines, TOKENIZER, **{"T": 190, "share": 0.3} | settings)


def line_of(prompt: str, answer: str) -> str:
    return write_openai(conversation(prompt, answer))


def messy(seed: int, size: int = 250) -> list[str]:
    """A file with copies, near copies, shared questions and lines that are broken."""
    dice, lines = random.Random(seed), ["", "{", '{"messages": []}', "[]", "3"]
    for _ in range(size):
        asked = f"What do {dice.choice(THINGS)} {dice.choice(VERBS)}"
        asked += dice.choice(ENDS) + dice.choice(["", "  ", "?"])
        answer = f"They {dice.choice(VERBS[:2])} {dice.choice(THINGS[:2])}."
        answer = dice.choice([answer, answer, answer.upper(), "", answer * 9])
        lines.append(line_of(asked, answer))
    dice.shuffle(lines)
    return lines


def texts(lessons: Lessons, lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of both sides, whatever their numbers."""
    sides = (lessons.train, lessons.held_out)
    return tuple(sorted(lines[i - 1] for i in side) for side in sides)


@pytest.mark.parametrize("seed", range(3))
def test_every_line_is_a_lesson_or_is_named_with_a_reason(seed):
    lines = messy(seed)
    lessons = prepared(lines)
    parts = [lessons.train, lessons.held_out, *lessons.dropped.values()]
    assert sorted(i for part in parts for i in part) == [*range(1, len(lines) + 1)]
    assert all(len(part) > 0 for part in parts), "a stage that is never reached"
    assert all(why for part in parts[2:] for why in part.values())


@pytest.mark.parametrize("seed", range(3))
def test_no_question_and_none_near_it_stands_on_both_sides(seed):
    lines = messy(seed)
    chats, _ = read_lines(lines)
    lessons = prepared(lines)
    for i in lessons.train:
        for j in lessons.held_out:
            one, other = question(chats[i]), question(chats[j])
            assert normalise(one) != normalise(other)
            assert similarity(one, other) < 0.8, (one, other)


@pytest.mark.parametrize("seed", range(3))
def test_no_two_lessons_are_near_copies_and_each_copy_has_one_that_is_kept(seed):
    lines = messy(seed)
    chats, _ = read_lines(lines)
    lessons = prepared(lines)

    def near(i: int, j: int) -> bool:  # each turn by itself
        pairs = zip(chats[i], chats[j], strict=True)
        return all(similarity(a.content, b.content) >= 0.8 for a, b in pairs)

    kept = [*lessons.train, *lessons.held_out]
    assert not any(near(i, j) for i in kept for j in kept if i < j)
    kept += lessons.dropped["near a held-out question"]
    for stage in ("copies", "near copies"):
        for i, why in lessons.dropped[stage].items():
            of = int(why.rsplit(" ", 1)[1])
            assert of in kept and near(i, of)
            same = [normalise(m.content) for m in chats[i]]
            others = [normalise(m.content) for m in chats[of]]
            assert (same == others) == (stage == "copies")


@pytest.mark.parametrize("seed", range(3))
def test_a_shuffled_file_keeps_the_same_texts_on_the_same_sides(seed):
    lines = messy(seed)
    shuffled = random.Random(seed).sample(lines, len(lines))
    one, other = prepared(lines), prepared(shuffled)
    assert texts(one, lines) == texts(other, shuffled)
    for stage in one.dropped:
        assert len(one.dropped[stage]) == len(other.dropped[stage]), stage


@pytest.mark.parametrize("seed", range(3))
def test_what_was_kept_is_kept_again(seed):
    lines = messy(seed)
    train, held_out = texts(prepared(lines), lines)
    again = prepared(train + held_out)
    assert texts(again, train + held_out) == (train, held_out)
    assert not any(again.dropped.values())


def test_a_file_that_grows_moves_nobody_to_the_other_side():
    lines = messy(0)
    before, after = prepared(lines[:60]), prepared(lines)
    assert not set(before.train) & set(after.held_out)
    assert not set(before.held_out) & set(after.train)


def test_the_share_is_of_questions_and_a_larger_one_only_adds():
    asked = [f"question {i}" for i in range(4000)]
    sides = [{a for a in asked if is_held_out(a, s)} for s in (0, 0.1, 0.3, 1)]
    assert sides[0] == set() and sides[3] == set(asked)
    assert sides[1] < sides[2]
    assert len(sides[1]) / len(asked) == pytest.approx(0.1, abs=0.02)


def test_questions_that_share_an_answer_are_no_copies():
    """B10: whoever hashes answers keeps one question of fifty."""
    answer = "yes, and it has always been so, as everybody here knows very well"
    lines = [line_of(f"{thing}, {verb}?", answer) for thing in THINGS for verb in VERBS]
    assert not any(prepared(lines, share=0).dropped.values())


def test_one_question_with_two_answers_is_kept_twice_on_one_side():
    lines = [line_of("Who?", "Ann did it."), line_of("who? ", "Nobody knows.")]
    for share in (0.2, 0.5, 0.8):
        lessons = prepared(lines, share=share)
        assert {len(lessons.train), len(lessons.held_out)} == {0, 2}


def test_a_word_put_in_front_hides_no_copy():
    """B7: n-grams at a fixed stride would all be others."""
    asked = " ".join(f"word{i}" for i in range(40))
    lines = [line_of(asked, "a b c"), line_of(f"So {asked}", "a b c")]
    copies = prepared(lines, T=900, share=0).dropped["near copies"]
    assert copies == {2: "of line 1"} or copies == {1: "of line 2"}


def test_it_counts_who_says_what():
    chats = [
        conversation("a b", "c d"),
        conversation("a", "b c d"),
    ]
    assert not any(prepared(map(write_openai, chats), share=0).dropped.values())


def test_length_is_that_of_the_row_that_is_trained_on():
    tokenizer = Tokenizer(merges=(), special_names=NAMES)
    chat = conversation("hi", "yo")
    for template in (CHATML, LLAMA3):
        row, lines = encode_chat(tokenizer, chat, template), [write_openai(chat)]
        T = len(row.ids)
        fits = prepare_lessons(lines, tokenizer, T, share=0, template=template)
        assert fits.train == {1: row}
        cut = prepare_lessons(lines, tokenizer, T - 1, share=0, template=template)
        assert cut.dropped["too long"] == {1: f"{T} tokens, and T = {T - 1}"}


def test_an_empty_answer_in_the_middle_is_refused_and_half_a_surrogate_is_no_text():
    chat = [*conversation("a", " "), *conversation("b", "c")]
    half = json.dumps({"instruction": "a", "output": "\ud800"})
    broken = [Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
    _, reasons = read_lines([write_openai(chat), half, write_openai(broken)])
    assert "each turn must be some words" in reasons[1]
    assert "surrogates" in reasons[2]
    assert "in turns" in reasons[3]


def test_normalising_twice_changes_nothing_and_marks_are_words():
    for text in ["  Straße ", "CAFE\u0301", "x² − 1", "2+2", "", "İ", "\u00a0a"]:
        once = normalise(text)
        assert normalise(once) == once == unicodedata.normalize("NFC", once)
    assert normalise("2+2") != normalise("2-2")
    assert similarity("2+2", "2-2") == 0
    assert ngrams("", 3) == [()]
    with pytest.raises(ValueError, match="n must be"):
        ngrams("a b", 0)


def test_no_lines_are_no_lessons_and_say_so():
    lessons = prepared([])
    assert not lessons.train and not lessons.held_out
    assert lessons.report().startswith("0 to train on []\n0 held out []\n")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"T": 0}, "T"),
        ({"share": 1.5}, "share"),
        ({"share": float("nan")}, "share"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 2}, "threshold"),
    ],
)
def test_a_bad_setting_is_named(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        prepared(**{"lines": []} | settings)
