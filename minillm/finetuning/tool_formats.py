r"""Conversations with tools, as others write them.

    OpenAI     {"role": "assistant", "content": null, "tool_calls": [{"id": "call_0",
                "type": "function", "function": {"name": "mul", "arguments": "..."}}]}
               {"role": "tool", "tool_call_id": "call_0", "content": "391"}
    ShareGPT   {"from": "function_call", "value": "{\"name\": \"mul\", ...}"}
               {"from": "observation", "value": "391"}

In OpenAI's format results may come in any order, as each names its call; ShareGPT has
nothing but the order. Read, they stand in the order of the calls, and ids are gone.
Where an entry says which tools there are, the list goes into the system message, in the
words of Qwen2.5's template: a model hears of them only in its prompt.

Source: OpenAI's reference of chat completions; ShareGPT's roles as in LLaMA-Factory.
Differs from the latter: several calls in one turn (a list) have a result each.
"""

import json
from collections.abc import Sequence
from typing import Any

from minillm.errors import require
from minillm.finetuning.formats import SPEAKERS, listed_turns
from minillm.finetuning.tools import (
    Call,
    Turn,
    read_call,
    read_json,
    require_tool_turns,
)

SHAREGPT = SPEAKERS | {"function_call": "assistant", "observation": "tool"}


def read_tool_conversation(entry: dict[str, Any]) -> list[Turn]:
    """A conversation with tools, in either format; ``read_jsonl`` takes this function.

    Args:
        entry: a line of a data set.

    Raises:
        ValueError: other keys, unknown speakers, calls that are no JSON, results of no
            call, a call without its result unless it is the last turn.

    >>> call = '{"name": "now", "arguments": {}}'
    >>> said = [("human", "hour?"), ("function_call", call)]
    >>> entry = {"conversations": [{"from": who, "value": what} for who, what in said]}
    >>> read_tool_conversation(entry)[1]
    Turn(role='assistant', content='', calls=(Call(name='now', arguments={}),))
    """
    ok, remedy = isinstance(entry, dict), "write one conversation a line"
    require(ok, "entry", entry, "an object", remedy)
    known, need = (
        {"messages", "conversations"} & set(entry),
        "'messages' or 'conversations'",
    )
    require(
        len(known) == 1, "keys of the entry", sorted(entry), need, "convert it first"
    )
    if "messages" in entry:
        turns = _from_openai(listed_turns(entry["messages"], "role"))
    else:
        turns = _from_sharegpt(listed_turns(entry["conversations"], "from", "value"))
        if entry.get("system"):
            turns = [Turn("system", entry["system"]), *turns]
    if entry.get("tools"):
        turns = describe_tools(turns, entry["tools"])
    require_tool_turns(turns, last="assistant")
    return turns


def _from_openai(messages: list[dict]) -> list[Turn]:
    turns: list[Turn | None] = []
    places: dict[str, int] = {}  # of results that are still to come, by the call's id
    for message in messages:
        said, asked = message.get("content") or "", message.get("tool_calls") or []
        if message["role"] == "tool":
            id_, waiting = str(message.get("tool_call_id")), sorted(places)
            remedy = "let each result name a call of the turn before, once"
            require(id_ in places, "tool_call_id", id_, f"one of {waiting}", remedy)
            turns[places.pop(id_)] = Turn("tool", said)
            continue
        asked = listed_turns(asked, "id", "function")
        calls = tuple(read_call(call["function"]) for call in asked)
        turns.append(Turn(message["role"], said, calls))
        places = {str(call["id"]): len(turns) + i for i, call in enumerate(asked)}
        turns += [None] * len(asked)
    return [turn for turn in turns if turn is not None]


def _from_sharegpt(said: list[dict]) -> list[Turn]:
    turns = []
    for turn in said:
        speaker, value = turn["from"], turn["value"]
        heard = isinstance(speaker, str) and speaker in SHAREGPT
        remedy = "rename the speaker, or leave the turn out"
        require(heard, "from", speaker, f"one of {sorted(SHAREGPT)}", remedy)
        calls = ()
        if speaker == "function_call":
            several = isinstance(value, str) and value.lstrip().startswith("[")
            entries = read_json(value) if several else [value]
            calls, value = tuple(map(read_call, entries)), ""
        turns.append(Turn(SHAREGPT[speaker], value, calls))
    return turns


# The words of Qwen2.5's template, to the letter: its models were trained on them.
SIGNATURES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def describe_tools(turns: Sequence[Turn], tools: Any) -> list[Turn]:
    """Say in the system message which tools there are.

    Args:
        turns: a conversation.
        tools: a list of signatures (JSON schema, as in OpenAI's format), or its JSON.

    Raises:
        ValueError: tools that are no list of objects.

    >>> said = describe_tools([Turn("user", "hi")], '[{"name": "now"}]')
    >>> '{"name": "now"}' in said[0].content, said[1].content
    (True, 'hi')
    """
    tools = listed_turns(read_json(tools))
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    rest, words = list(turns), SIGNATURES.format(lines)
    if rest and rest[0].role == "system":
        words = f"{rest.pop(0).content}\n\n{words}"
    return [Turn("system", words), *rest]


def write_tools_openai(turns: Sequence[Turn]) -> str:
    """A conversation as a line of OpenAI's format; ids count the calls.

    Raises:
        ValueError: turns out of order.

    >>> write_tools_openai([Turn("user", "hi"), Turn("assistant", "yo")])
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", ...}]}'
    """
    require_tool_turns(turns, last="assistant")
    written, made, answered = [], 0, 0
    for turn in turns:
        message = {"role": turn.role, "content": turn.content}
        if turn.role == "tool":
            message = {"role": "tool", "tool_call_id": f"call_{answered}"} | message
            answered += 1
        if turn.calls:
            ids = range(made, made + len(turn.calls))
            message["content"] = turn.content or None
            message["tool_calls"] = list(map(_openai_call, ids, turn.calls))
            made += len(turn.calls)
        written.append(message)
    return json.dumps({"messages": written}, ensure_ascii=False)


def _openai_call(number: int, call: Call) -> dict:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}  # JSON within JSON
    return {"id": f"call_{number}", "type": "function", "function": function}


def write_sharegpt(turns: Sequence[Turn]) -> str:
    """A conversation as a line of ShareGPT's format.

    Raises:
        ValueError: turns out of order, words beside a call, which have no place there.

    >>> write_sharegpt([Turn("user", "hi"), Turn("assistant", "yo")])
    '{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", ...}]}'
    """
    require_tool_turns(turns, last="assistant")
    speakers = {"user": "human", "assistant": "gpt", "tool": "observation"}
    written = []
    for turn in turns:
        speaker, value = speakers.get(turn.role, turn.role), turn.content
        if turn.calls:
            apart, remedy = not turn.content, "make a turn of each, or write OpenAI's"
            require(apart, "a turn", turn, "words or calls", remedy)
            calls = [{"name": c.name, "arguments": c.arguments} for c in turn.calls]
            value = json.dumps(
                calls if len(calls) > 1 else calls[0], ensure_ascii=False
            )
            speaker = "function_call"
        written.append({"from": speaker, "value": value})
    return json.dumps({"conversations": written}, ensure_ascii=False)
