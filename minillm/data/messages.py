"""Conversations: who says what, in turns.

    [Message("system", "be brief"), Message("user", "hi"), Message("assistant", "yo")]

What makes a row of tokens of them is in ``chat``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from minillm.data.templates import ROLES
from minillm.errors import require, require_one_of


@dataclass(frozen=True)
class Message:
    """One turn.

    Args:
        role: "system", "user" or "assistant".
        content: the words, taken as they are: no blank is stripped, no mark obeyed.

    Raises:
        ValueError: another role, or a content that is no string.

    >>> Message("bot", "hello")
    Traceback (most recent call last):
    ValueError: role must be one of ('system', 'user', 'assistant'), got 'bot'; ...
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        require_one_of(ROLES, role=self.role)
        text, remedy = isinstance(self.content, str), "an empty turn has ''"
        require(text, "content", self.content, "a string", remedy)


def conversation(
    prompt: str, response: str | None = None, system: str | None = None
) -> list[Message]:
    """The messages of one question, with its answer if there is one already.

    >>> [message.role for message in conversation("hi", "hello", system="be brief")]
    ['system', 'user', 'assistant']
    """
    said = zip(ROLES, (system, prompt, response), strict=True)
    return [Message(role, content) for role, content in said if content is not None]


def require_turns(messages: Sequence[Message], last: str) -> None:
    """Require a system message at most, then user and assistant in turns.

    Args:
        messages: the conversation.
        last: the role that must have the last turn.

    Raises:
        ValueError: anything else.

    >>> require_turns([Message("user", "hi")], last="assistant")
    Traceback (most recent call last):
    ValueError: the roles of messages must be non-empty, and end with the ...
    """
    given = isinstance(messages, Sequence) and all(
        isinstance(message, Message) for message in messages
    )
    remedy = "make each with Message(role, content)"
    require(given, "messages", messages, "a list of Message", remedy)
    roles = [message.role for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    turns = all(a == b for a, b in zip(spoken, cycle(ROLES[1:]), strict=False))
    need = "user and assistant in turns, after one system message at most"
    remedy = "join messages of one speaker, and begin with the user"
    require(turns, "the roles of messages", roles, need, remedy)
    remedy = "encode_chat takes what was answered, encode_prompt what waits for it"
    ends = f"non-empty, and end with the {last}'s turn"
    require(spoken[-1:] == [last], "the roles of messages", roles, ends, remedy)
