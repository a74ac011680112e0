r"""Tools in a chat template: one row of text, as ever.

A call is JSON in the assistant's turn; a result is another turn of somebody who is
not the assistant. So there is nothing new to encode: the row is cut into exchanges, in
which somebody asks and the assistant answers, and each is a chat of two messages. What
differs between models is how they are written:

    ChatML (Qwen2.5)   <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>
                       results in a turn of the user: <tool_response>\n...
    Llama 3.1          {"name": ..., "parameters": ...}, and nothing else in the turn
                       results in a turn of their own, under "ipython"

A result comes from outside and may hold any text. The marks of turns in it are ordinary
characters, as in a user's words. Instructions in it are words like any others, and a
model that was not taught to distrust them will follow them.

Source: the chat templates of Qwen2.5 and Llama 3.1 (2024). Differs from the latter: it
writes a result that is text as a JSON string, in quotes; here it stands as it is.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

from minillm.data.chat import Encoded, chat_text, encode_chat, encode_prompt
from minillm.data.messages import Message
from minillm.data.templates import CHATML, Marks, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require
from minillm.finetuning.formats import LLAMA3
from minillm.finetuning.tools import Turn, read_call, require_tool_turns


@dataclass(frozen=True)
class ToolTemplate:
    """How calls and results are written.

    Args:
        template: of everything else.
        tool: the marks around results.
        call, result: what stands around each, for ``str.format``.
        arguments: what the arguments are called.
        pattern: finds calls in what the model wrote; its group is the JSON.
        several: whether words and calls may share a turn.
    """

    template: Template
    tool: Marks
    call: str
    result: str
    arguments: str
    pattern: str
    several: bool


CHATML_TOOLS = ToolTemplate(
    CHATML,
    CHATML.user,
    call="<tool_call>\n{}\n</tool_call>",
    result="<tool_response>\n{}\n</tool_response>",
    arguments="arguments",
    pattern=r"\n?<tool_call>\n(.*?)\n</tool_call>",
    several=True,
)
LLAMA3_TOOLS = ToolTemplate(
    LLAMA3,
    Marks("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
    call="{}",
    result="{}",
    arguments="parameters",
    pattern=r'^(\{"name": .*\})$',
    several=False,
)


def encode_tool_chat(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: ToolTemplate = CHATML_TOOLS
) -> Encoded:
    """A conversation for training: what the assistant says and calls are targets.

    Raises:
        ValueError: turns out of order, a tokenizer without the marks, for Llama words
            beside a call or several calls.

    >>> from minillm.finetuning.tools import Call
    >>> call = Turn("assistant", calls=(Call("now", {}),))
    >>> turns = [Turn("user", "hour?"), call, Turn("tool", "6"), Turn("assistant", "6")]
    >>> tokenizer = Tokenizer(merges=())
    >>> ids, mask = encode_tool_chat(tokenizer, turns)
    >>> print(tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]))
    <tool_call>
    {"name": "now", "arguments": {}}
    </tool_call><|im_end|>6<|im_end|>
    """
    require_tool_turns(turns, last="assistant")
    parts = [encode_chat(tokenizer, *part) for part in _exchanges(turns, tools)]
    return Encoded(*(list(chain(*part)) for part in zip(*parts, strict=True)))


def encode_tool_prompt(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: ToolTemplate = CHATML_TOOLS
) -> list[int]:
    """A conversation that waits for the assistant; a prefix of ``encode_tool_chat``.

    Raises:
        ValueError: as ``encode_tool_chat``; a call that no tool has answered.

    >>> tokenizer = Tokenizer(merges=())
    >>> tokenizer.decode(encode_tool_prompt(tokenizer, [Turn("user", "hi")]))
    '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    require_tool_turns(turns, last="user")
    *past, waits = _exchanges(turns, tools)
    ids = [encode_chat(tokenizer, *part).ids for part in past]
    return list(chain(*ids, encode_prompt(tokenizer, *waits)))


def tool_text(turns: Sequence[Turn], tools: ToolTemplate = CHATML_TOOLS) -> str:
    """A conversation as text, to look at.

    >>> print(tool_text([Turn("tool", "6"), Turn("assistant", "It is 6.")]), end="")
    <|im_start|>user
    <tool_response>
    6
    </tool_response><|im_end|>
    <|im_start|>assistant
    It is 6.<|im_end|>
    """
    return "".join(chat_text(*part) for part in _exchanges(turns, tools))


def read_turn(text: str, tools: ToolTemplate = CHATML_TOOLS) -> Turn:
    """What a model wrote, as a turn of words and calls.

    Raises:
        ValueError: a call that is no JSON, or has no name or no arguments.

    >>> read_turn('Wait.\\n<tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>')
    Turn(role='assistant', content='Wait.', calls=(Call(name='f', arguments={}),))
    """
    parts = re.split(tools.pattern, text, flags=re.DOTALL)
    calls = tuple(read_call(part, tools.arguments) for part in parts[1::2])
    return Turn("assistant", "".join(parts[::2]), calls)


def _exchanges(
    turns: Sequence[Turn], tools: ToolTemplate
) -> Iterator[tuple[list[Message], Template]]:
    """Chats of two messages; the first may have a system's, the last lack an answer."""
    chat, template = [], tools.template
    for role, group in groupby(turns, key=lambda turn: turn.role):
        if role == "tool":  # results of several calls share one turn
            results = [tools.result.format(turn.content) for turn in group]
            chat.append(Message("user", "\n".join(results)))
            template = replace(tools.template, user=tools.tool)
            continue
        for turn in group:
            chat.append(Message(role, _said(turn, tools)))
            if role == "assistant":
                yield chat, template
                chat, template = [], tools.template
    if chat:
        yield chat, template


def _said(turn: Turn, tools: ToolTemplate) -> str:
    calls = [{"name": c.name, tools.arguments: c.arguments} for c in turn.calls]
    parts = [tools.call.format(json.dumps(c, ensure_ascii=False)) for c in calls]
    parts = [turn.content, *parts] if turn.content else parts
    remedy = "make a turn of each, or use another template"
    one = tools.several or len(parts) <= 1
    require(one, "a turn", turn, "words or one call", remedy)
    return "\n".join(parts)
