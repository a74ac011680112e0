"""The same conversation in three formats, and what is wrong with a line."""

import json

import pytest

from minillm.data import Tokenizer
from minillm.data.chat import chat_text, encode_chat, encode_prompt
from minillm.data.messages import conversation
from minillm.finetuning.formats import (
    ALPACA,
    LLAMA3,
    read_conversation,
    read_jsonl,
    write_openai,
)

TALK = conversation("hi", "yo", system="be brief")
SAME = {
    "openai": {"messages": [{"role": m.role, "content": m.content} for m in TALK]},
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "yo"},
        ]
    },
    "alpaca": {"instruction": "hi", "input": "", "output": "yo", "system": "be brief"},
}


@pytest.mark.parametrize("kind", SAME)
def test_three_formats_are_one_conversation(kind):
    assert read_conversation(SAME[kind]) == TALK


def test_the_system_message_of_sharegpt_may_stand_beside_its_turns():
    turns = SAME["sharegpt"]["conversations"]
    beside = {"conversations": turns[1:], "system": "be brief"}
    assert read_conversation(beside) == TALK
    with pytest.raises(ValueError, match="after one system message at most"):
        read_conversation(beside | {"conversations": turns})


def test_what_is_written_is_read_again():
    again = read_conversation(json.loads(write_openai(TALK)))
    assert again == TALK
    assert "ü" in write_openai(conversation("grün", "ja"))


def test_an_input_stands_below_its_instruction():
    entry = {"instruction": "Add", "input": "2 and 2", "output": "4"}
    assert read_conversation(entry)[0].content == "Add\n\n2 and 2"


def test_many_turns_are_kept():
    talk = [*conversation("a", "b"), *conversation("c", "d")]
    assert read_conversation(json.loads(write_openai(talk))) == talk


WRONG = {
    "no object": ([], "an object"),
    "other keys": ({"prompt": "hi"}, "convert it first"),
    "unknown speaker": (
        {"conversations": [{"from": "bot", "value": "hi"}]},
        "rename the speaker",
    ),
    "a turn without words": ({"messages": [{"role": "user"}]}, "complete it"),
    "no list": ({"messages": "hi"}, "a list of objects"),
    "empty": ({"messages": []}, "non-empty"),
    "no answer": ({"messages": [{"role": "user", "content": "hi"}]}, "assistant"),
    "an empty answer": ({"instruction": "hi", "output": "  "}, "nobody answered"),
    "a number": ({"instruction": "hi", "output": 4}, "a string"),
    "a number to do": ({"instruction": 4, "output": "hi"}, "a string"),
    "a list of speakers": ({"messages": [{"role": [], "content": ""}]}, "rename"),
    "out of order": (
        {"messages": [{"role": "assistant", "content": "yo"}] * 2},
        "in turns",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_fault_is_named(kind):
    entry, words = WRONG[kind]
    with pytest.raises(ValueError, match=words):
        read_conversation(entry)


@pytest.mark.parametrize("kind", WRONG)
def test_a_fault_in_a_file_is_named_with_its_line(kind, tmp_path):
    file = tmp_path / "data.jsonl"
    good, bad = json.dumps(SAME["openai"]), json.dumps(WRONG[kind][0])
    file.write_text(f"{good}\n\n{bad}\n{good}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^line 3: "):
        read_jsonl(file)


def test_files_are_read_whole_or_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, SAME.values())), encoding="utf-8")
    assert read_jsonl(file) == [TALK] * 3
    file.write_text('{"messages": ', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: no JSON"):
        read_jsonl(file)
    file.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="with conversations"):
        read_jsonl(file)
    with pytest.raises(FileNotFoundError, match="one JSON object a line"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_llama_3_and_alpaca_look_as_their_models_know_them():
    assert chat_text(TALK, LLAMA3) == (
        "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>"
    )
    assert chat_text(conversation("hi", "yo"), ALPACA) == (
        "### Instruction:\nhi\n\n### Response:\nyo<|endoftext|>\n\n"
    )


def test_the_end_of_an_answer_is_a_target_in_alpaca_too():
    tokenizer = Tokenizer(merges=())
    ids, mask = encode_chat(tokenizer, conversation("hi", "yo"), ALPACA)
    learned = [i for i, target in zip(ids, mask, strict=True) if target]
    assert tokenizer.decode(learned) == "yo<|endoftext|>"
    prompt = encode_prompt(tokenizer, conversation("hi"), ALPACA)
    assert ids[: len(prompt)] == prompt


def test_a_template_without_its_marks_in_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"eot_id|special"):
        encode_chat(Tokenizer(merges=()), TALK, LLAMA3)
