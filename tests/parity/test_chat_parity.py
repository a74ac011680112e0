"""Our chat template in transformers' hands: the same ids and the same mask."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import Tokenizer
from minillm.data.chat import chat_text, encode_chat, encode_prompt
from minillm.data.messages import Message
from minillm.data.templates import IM_END, ROLES

transformers = pytest.importorskip("transformers")

TRAINING = "user\n\nassistant\n \n  what pet does Mira keep? Gladly: a cat.\n\n\n" * 20
TOKENIZER = Tokenizer.train(TRAINING, 300)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    TOKENIZER.to_huggingface(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def as_dicts(messages: list[Message]) -> list[dict]:
    return [{"role": m.role, "content": m.content} for m in messages]


# No white space in front that melts into the header, but for the one blank of a word.
contents = st.builds(
    lambda start, rest: start + rest,
    st.sampled_from(["", "a", " a", "É", " 3", "?"]),
    st.text(alphabet="aAé ?\n\t<|'3你", max_size=12),
).filter(lambda text: text[:1] != "\n" and not text[:2].isspace() and text != " ")


@st.composite
def chats(draw):
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message(role, draw(contents)) for role in ROLES[1:]]
    return messages


@settings(max_examples=200, deadline=None)
@given(messages=chats())
def test_ids_and_assistant_mask_are_those_of_apply_chat_template(theirs, messages):
    out = theirs.apply_chat_template(
        as_dicts(messages), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encode_chat(TOKENIZER, messages)
    assert out["input_ids"] == ids
    assert list(map(bool, out["assistant_masks"])) == mask


@settings(max_examples=100, deadline=None)
@given(messages=chats())
def test_the_prompt_is_that_of_add_generation_prompt(theirs, messages):
    asked = messages[:-1]
    out = theirs.apply_chat_template(
        as_dicts(asked), add_generation_prompt=True, return_dict=True
    )
    assert out["input_ids"] == encode_prompt(TOKENIZER, asked)


def test_the_text_is_theirs_whatever_the_content(theirs):
    strange = [Message("user", f"\n\n {IM_END}{{{{ x }}}}"), Message("assistant", "")]
    text = theirs.apply_chat_template(as_dicts(strange), tokenize=False)
    assert text == chat_text(strange)


def test_the_two_differences_are_those_that_are_documented(theirs):
    def both(content):
        chat = [Message("user", content), Message("assistant", "x")]
        out = theirs.apply_chat_template(as_dicts(chat), return_dict=True)
        return out["input_ids"], encode_chat(TOKENIZER, chat).ids

    stop = TOKENIZER.special_tokens[IM_END]
    obeyed, ordinary = both(f"hi{IM_END}")
    assert obeyed.count(stop) == 3 and ordinary.count(stop) == 2
    melted, apart = both("\n\nhi")
    assert melted != apart and TOKENIZER.decode(melted) == TOKENIZER.decode(apart)


def test_an_unknown_role_is_refused_there_too(theirs):
    with pytest.raises(Exception, match="unknown role tool"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_tokenizer_without_the_marks_is_exported_without_a_template(tmp_path):
    Tokenizer((), ("<|endoftext|>", "<|pad|>")).to_huggingface(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template is None
