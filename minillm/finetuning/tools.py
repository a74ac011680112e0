r"""Tools: the assistant asks a program, and reads what it says.

    user        what is 17 * 23?
    assistant   call multiply(a=17, b=23)          written by the model: a target
    tool        391                                read and never learned
    assistant   It is 391.                         a target

A conversation in turns of four roles. A turn of the assistant may hold calls, and right
after it come their results, one turn each and in their order; so nothing needs the ids
by which hosted models tell results apart. How turns are read from files is in
``tool_formats``, and what a model sees of them in ``tool_chat``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minillm.data.templates import ROLES
from minillm.errors import require, require_one_of


@dataclass(frozen=True)
class Call:
    """What the assistant asks of a tool.

    Raises:
        ValueError: a name that is no word, arguments that are no dict by name.

    >>> Call("multiply", {"a": 17, "b": 23})
    Call(name='multiply', arguments={'a': 17, 'b': 23})
    """

    name: str
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and bool(self.name)
        require(named, "the name of a call", self.name, "a word", "name the tool")
        given, remedy = isinstance(self.arguments, dict), "give them by name, or {}"
        require(given, "arguments", self.arguments, "an object", remedy)


@dataclass(frozen=True)
class Turn:
    """A message that may hold calls, or be a tool's.

    Args:
        role: "system", "user", "assistant" or "tool".
        content: the words, or what the tool answered.
        calls: of the assistant; their results follow, a turn each, in this order.

    Raises:
        ValueError: another role, a content that is no text, calls of somebody else.

    >>> Turn("robot", "hi")
    Traceback (most recent call last):
    ValueError: role must be one of ('system', 'user', 'assistant', 'tool'), got ...
    """

    role: str
    content: str = ""
    calls: tuple[Call, ...] = ()

    def __post_init__(self) -> None:
        require_one_of((*ROLES, "tool"), role=self.role)
        text, remedy = isinstance(self.content, str), "write results as text"
        require(text, "content", self.content, "a string", remedy)
        own = not self.calls or self.role == "assistant"
        require(own, "calls", self.calls, "the assistant's", "leave them out")


def require_tool_turns(turns: Sequence[Turn], last: str) -> None:
    """Require turns in order: each call is answered before anybody else speaks.

    Args:
        turns: the conversation.
        last: "assistant" for a conversation to be learned, whose last turn may be a
            call; "user" for one that waits for the assistant.

    Raises:
        ValueError: anything else; the error says whose turn it was.

    >>> require_tool_turns([Turn("user", "hi"), Turn("tool", "391")], last="assistant")
    Traceback (most recent call last):
    ValueError: the role of turn 1 must be 'assistant', got 'tool'; ...
    """
    listed = isinstance(turns, Sequence) and all(isinstance(t, Turn) for t in turns)
    require(listed, "turns", turns, "a list of Turn", "make each with Turn(role, ...)")
    owed, due = 0, "user"
    for i, turn in enumerate(turns):
        if i == 0 and turn.role == "system":
            continue
        remedy = (
            "answer each call by one tool turn, and let user and assistant take turns"
        )
        require(turn.role == due, f"the role of turn {i}", turn.role, repr(due), remedy)
        owed = len(turn.calls) if due == "assistant" else max(owed - 1, 0)
        due = "tool" if owed else "user" if due == "assistant" else "assistant"
    spoken = [turn.role for turn in turns if turn.role != "system"]
    ends = spoken[-1:] == ["assistant"] if last == "assistant" else due == "assistant"
    need = f"non-empty, and end with the turn of the {last}"
    need += "" if last == "assistant" else " or of the last tool"
    require(bool(spoken) and ends, "the roles of turns", spoken, need, "complete them")


def read_call(entry: Any, arguments: str = "arguments") -> Call:
    """A call from an object or its JSON; the arguments may be JSON, too.

    Raises:
        ValueError: no JSON, no name, no arguments.

    >>> read_call('{"name": "mul", "arguments": "{}"}')
    Call(name='mul', arguments={})
    """
    entry = read_json(entry)
    whole = isinstance(entry, dict) and {"name", arguments} <= set(entry)
    need = f"an object with 'name' and {arguments!r}"
    require(whole, "a call", entry, need, "complete it")
    return Call(entry["name"], read_json(entry[arguments]))


def read_json(entry: Any) -> Any:
    """What a text spells in JSON; anything else as it is.

    Raises:
        ValueError: a text that is no JSON.

    >>> read_json('{"a": 1}'), read_json({"a": 1})
    ({'a': 1}, {'a': 1})
    """
    try:
        return json.loads(entry) if isinstance(entry, str) else entry
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON, got {entry!r} ({error}); mend it") from None
