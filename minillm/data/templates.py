r"""Chat templates: the marks that make one text of a conversation.

A model reads one row of tokens and knows nothing of turns. A template writes who speaks
into the row, in marks that nobody can type:

    <|im_start|>user\n what pet does Mira keep? <|im_end|>\n
    <|im_start|>assistant\n  Gladly: a cat.     <|im_end|>\n
    opening                  content             closing    after

A model is fine-tuned on one template and understands no other: a mark left out or a
line break too many is text that it has never seen.

Source: OpenAI, "Chat Markup Language" (2023), as the Qwen models use it.
"""

from dataclasses import dataclass

from minillm.errors import require

ROLES = ("system", "user", "assistant")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Marks:
    """What stands around a message of one role.

    Args:
        opening: the header, which names the role. For the assistant it ends the prompt.
        closing: the end of the turn. The assistant has to write it: it must be a target
            in training, and generation stops at it.
        after: what follows, up to the next header; nobody has to write it.
    """

    opening: str
    closing: str
    after: str = ""


@dataclass(frozen=True)
class Template:
    """The marks of each role, and which names in them are special tokens.

    Raises:
        ValueError: a turn of the assistant without an end that is a token of its own:
            no model would ever learn to stop.

    >>> CHATML.marks("user").opening
    '<|im_start|>user\\n'
    """

    system: Marks
    user: Marks
    assistant: Marks
    special_names: tuple[str, ...]

    def __post_init__(self) -> None:
        end, need = self.assistant.closing, f"one of {self.special_names}"
        remedy = "end turns by a token that nobody types, and list it"
        require(end in self.special_names, "the assistant's closing", end, need, remedy)

    def marks(self, role: str) -> Marks:
        """The marks of one of ``ROLES``."""
        return getattr(self, role)


CHATML = Template(
    *(Marks(f"{IM_START}{role}\n", IM_END, "\n") for role in ROLES),
    special_names=(IM_START, IM_END),
)
