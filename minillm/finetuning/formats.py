r"""Formats: the same conversation as others write it, read into one form.

    OpenAI     {"messages": [{"role": "user", "content": "hi"}, ...]}
    ShareGPT   {"conversations": [{"from": "human", "value": "hi"}, ...]}
    Alpaca     {"instruction": "Add", "input": "2 and 2", "output": "4"}

A data set is a file of such lines, and somewhere in it a line is wrong: a role that
nobody knows, an answer that is missing, two turns of one speaker. Found in training it
costs a day, so every line is checked first, and an error names its number.

Beside ChatML (``data/templates``) stand two more templates. They are for models that
were trained on them; a model understands the marks that it has seen and no others.

Source: the model card of Llama 3 (Meta 2024); Taori et al. 2023 (Stanford Alpaca).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm.data.messages import Message, conversation, require_turns
from minillm.data.templates import ROLES, Marks, Template
from minillm.errors import require, require_file

# No token of its own but the end of text, without which a model would never stop.
ALPACA = Template(
    system=Marks("", "\n\n"),
    user=Marks("### Instruction:\n", "\n\n"),
    assistant=Marks("### Response:\n", "<|endoftext|>", "\n\n"),
    special_names=("<|endoftext|>",),
)


def tagged(opening: str, closing: str, special_names: tuple[str, ...]) -> Template:
    """A template in which all roles are marked alike, but for their names.

    Args:
        opening: the header, with ``{role}`` in it.
        closing: the end of a turn, one of ``special_names``: without an end that is a
            token of its own, a model never learns to stop.
        special_names: of the marks that are special tokens.

    Raises:
        ValueError: a header that names no role, no end, an end that is no special name.

    >>> tagged("<|{role}|>", "<|end|>", ("<|end|>",)).user
    Marks(opening='<|user|>', closing='<|end|>', after='')
    """
    named, remedy = "{role}" in opening, "write for instance '<|{role}|>'"
    require(named, "opening", opening, "a header with {role}", remedy)
    roles = [opening.format(role=role) for role in ROLES]
    return Template(*(Marks(role, closing) for role in roles), special_names)


# The file of a Llama 3 also begins with <|begin_of_text|>, which its tokenizer adds.
LLAMA3 = tagged(
    "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "<|eot_id|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def read_conversation(entry: dict[str, Any]) -> list[Message]:
    """A conversation in one of the three formats, known by its keys.

    Args:
        entry: a line of a data set.

    Raises:
        ValueError: other keys, unknown speakers, contents that are no text, turns out
            of order, no answer at the end.

    >>> [m.role for m in read_conversation({"instruction": "Add", "output": "4"})]
    ['user', 'assistant']
    """
    ok, remedy = isinstance(entry, dict), "write one conversation a line"
    require(ok, "entry", entry, "an object", remedy)
    if "messages" in entry:
        messages = _turns(entry["messages"], "role", "content")
    elif "conversations" in entry:
        messages = _turns(entry["conversations"], "from", "value")
        if entry.get("system"):
            messages = [Message("system", entry["system"]), *messages]
    else:
        need = "'messages', 'conversations', or 'instruction' and 'output'"
        known = "instruction" in entry and "output" in entry
        require(known, "keys of the entry", sorted(entry), need, "convert it first")
        words, remedy = entry["instruction"], "write the instruction as text"
        require(isinstance(words, str), "instruction", words, "a string", remedy)
        extra = entry.get("input") or ""
        prompt = f"{words}\n\n{extra}" if extra else words
        messages = conversation(prompt, entry["output"], entry.get("system"))
    require_turns(messages, last="assistant")
    said, remedy = messages[-1].content.strip(), "leave out what nobody answered"
    require(bool(said), "the last answer", said, "some words", remedy)
    return messages


def _turns(turns: Any, speaker: str, words: str) -> list[Message]:
    messages = []
    for turn in listed_turns(turns, speaker, words):
        role, known = turn[speaker], sorted(SPEAKERS)
        remedy = "rename the speaker, or leave the turn out"
        heard = isinstance(role, str) and role in SPEAKERS
        require(heard, speaker, role, f"one of {known}", remedy)
        messages.append(Message(SPEAKERS[role], turn[words]))
    return messages


def listed_turns(turns: Any, *keys: str) -> list[dict[str, Any]]:
    """Require a list of objects that have these keys, and return it.

    >>> listed_turns([{"role": "user"}], "role", "content")
    Traceback (most recent call last):
    ValueError: a turn must be an object with 'role' and 'content', got ['role']; ...
    """
    listed = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    remedy = "make an object of each"
    require(listed, "turns", turns, "a list of objects", remedy)
    need = "an object with " + " and ".join(map(repr, keys))
    for turn in turns:
        require(set(keys) <= set(turn), "a turn", sorted(turn), need, "complete it")
    return turns


def read_jsonl(
    path: str | Path, read: Callable[[dict], list] = read_conversation
) -> list[list]:
    """All conversations of a file, one a line; empty lines are passed over.

    Args:
        path: of the file.
        read: makes a conversation of an entry; ``read_tool_conversation`` for tools.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no JSON or no conversation; the message begins with
            its number. A file without any.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "some.jsonl"
    >>> _ = file.write_text('{"instruction": "Add", "output": "4"}\\n{"messages": []}')
    >>> read_jsonl(file)
    Traceback (most recent call last):
    ValueError: line 2: the roles of messages must be non-empty, and end with the ...
    """
    require_file(path, "give a file of one JSON object a line")
    found = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(read(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: no JSON ({error}); mend it") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    require(len(found) > 0, "path", str(path), "a file with conversations", "fill it")
    return found


def write_openai(messages: list[Message]) -> str:
    """A conversation as a line of OpenAI's format, for hosted fine-tuning.

    >>> write_openai(conversation("hi", "yo"))
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", ...}]}'
    """
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return json.dumps({"messages": turns}, ensure_ascii=False)
