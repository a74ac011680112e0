"""Calls and results in the templates of Qwen2.5 and Llama 3.1, run by transformers."""

import json
from importlib.resources import files

import pytest

from minillm.data import Tokenizer
from minillm.finetuning.formats import LLAMA3
from minillm.finetuning.tool_chat import (
    LLAMA3_TOOLS,
    encode_tool_chat,
    encode_tool_prompt,
    tool_text,
)
from minillm.finetuning.tool_formats import describe_tools, write_tools_openai
from minillm.finetuning.tools import Call, Turn

transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

NAMES = (*Tokenizer(()).special_names, *LLAMA3.special_names)
TOKENIZER = Tokenizer((), NAMES)
MUL, ADD = Call("mul", {"a": 17, "b": 2.5}), Call("add", {"é": [1, None], "x": "<'"})
ONE = [
    Turn("system", "be brief"),
    Turn("user", "17 * 2.5?"),
    Turn("assistant", "", (MUL,)),
    Turn("tool", "42.5"),
    Turn("assistant", "It is 42.5."),
]
SEVERAL = [
    *ONE,
    Turn("user", "both?"),
    Turn("assistant", "Both.", (MUL, ADD)),
    Turn("tool", "42.5"),
    Turn("tool", '{"sum": 3}'),
    Turn("assistant", "", (ADD,)),
    Turn("tool", "3"),
    Turn("assistant", "42.5 and 3."),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    TOKENIZER.to_huggingface(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def template(name: str) -> str:
    """A model's own template, of those that TRL keeps."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def as_dicts(turns) -> list[dict]:
    """In OpenAI's format, but with arguments as objects, as the templates ask."""
    messages = json.loads(write_tools_openai(turns))["messages"]
    for call in [c for m in messages for c in m.get("tool_calls", [])]:
        function = call["function"]
        function["arguments"] = json.loads(function["arguments"])
    return messages


@pytest.mark.parametrize("turns", [ONE, SEVERAL])
def test_chatml_is_that_of_qwen(theirs, turns):
    own = template("qwen2_5")
    text = theirs.apply_chat_template(
        as_dicts(turns), chat_template=own, tokenize=False
    )
    assert text == tool_text(turns)
    out = theirs.apply_chat_template(
        as_dicts(turns), chat_template=own, return_dict=True
    )
    assert out["input_ids"] == encode_tool_chat(TOKENIZER, turns).ids


def test_the_mask_is_theirs_but_for_the_line_breaks_around_a_turn(theirs):
    """TRL's variant also scores the break before the words and after the end; ours
    begins and ends where the assistant does."""
    out = theirs.apply_chat_template(
        as_dicts(SEVERAL),
        chat_template=template("qwen2_5_training"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = encode_tool_chat(TOKENIZER, SEVERAL)
    more = [
        id_
        for id_, we, they in zip(ids, mask, out["assistant_masks"], strict=True)
        if we != bool(they)
    ]
    assert out["input_ids"] == ids
    assert more == [ord("\n")] * 2 * 5  # five turns of the assistant
    assert sum(mask) == sum(out["assistant_masks"]) - 10


def test_the_prompt_is_that_of_add_generation_prompt(theirs):
    for n in (2, 4, 9, 11):
        out = theirs.apply_chat_template(
            as_dicts([*SEVERAL[:n], Turn("assistant", "x")])[:-1],
            chat_template=template("qwen2_5"),
            add_generation_prompt=True,
            return_dict=True,
        )
        assert out["input_ids"] == encode_tool_prompt(TOKENIZER, SEVERAL[:n])


def test_tools_are_described_in_the_words_of_qwen(theirs):
    tools = [{"type": "function", "function": {"name": n}} for n in ("mul", "é")]
    text = theirs.apply_chat_template(
        as_dicts(ONE), chat_template=template("qwen2_5"), tools=tools, tokenize=False
    )
    assert text == tool_text(describe_tools(ONE, tools))


def test_llama_3_is_that_of_llama_but_for_quotes_around_results(theirs):
    """Its template also begins with a system message of its own, which is left out."""
    text = theirs.apply_chat_template(
        as_dicts(ONE[1:]), chat_template=template("llama3_1"), tokenize=False
    )
    header = LLAMA3.user.opening
    said = header + text.split(header, 1)[1]
    ours = tool_text(ONE[1:], LLAMA3_TOOLS)
    assert said != ours
    assert said.replace('"42.5"', "42.5") == ours
    with pytest.raises(Exception, match="single tool-calls"):
        theirs.apply_chat_template(
            as_dicts(SEVERAL[5:]), chat_template=template("llama3_1"), tokenize=False
        )
    with pytest.raises(ValueError, match="words or one call"):
        tool_text(SEVERAL[5:], LLAMA3_TOOLS)
