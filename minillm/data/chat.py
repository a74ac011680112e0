r"""From conversations to ids, and to the mask that says which of them are learned.

Fine-tuning teaches what the assistant says, and when it stops. So the targets are the
assistant's words and the mark that closes its turn; all else is seen and never scored:

    <|im_start|>user\n hi <|im_end|>\n <|im_start|>assistant\n  hello <|im_end|>  \n
    seen ......................................................  target .........  seen

Three things go wrong where this is built from strings, and none can here:

- *Ids and mask get out of step*, when the mask is found by searching for the header, or
  by encoding the prompt a second time. Both come from ``_encode``, span by span.
- *The prompt is no prefix*, when BPE merges across its end. Each span is encoded by
  itself, so training and generation see the same tokens.
- *A user speaks as the system*, by typing the marks. Contents are encoded as ordinary
  text, in which no special token is recognised.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from minillm.data.messages import Message, require_turns
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require


class Encoded(NamedTuple):
    """Token ids, and for each whether it is a target; of equal length."""

    ids: list[int]
    mask: list[bool]


class _Span(NamedTuple):
    """A part of a conversation: text of our own or of others, scored or not."""

    text: str
    ours: bool
    target: bool


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], template: Template = CHATML
) -> Encoded:
    """A conversation for training: every turn of the assistant is a target.

    Args:
        tokenizer: one that has the template's special tokens.
        messages: a system message first, if any; then user and assistant in turns.
        template: the marks.

    Raises:
        ValueError: turns out of order, a last turn that is not the assistant's, a
            tokenizer without the marks.

    Differs from transformers: there, a content is encoded together with the header
    before it, and special tokens are recognised within. Ids are equal unless a content
    holds the name of a special token, or begins with so much white space (a line break,
    two blanks) that it melts into the line break of the header.

    >>> from minillm.data import conversation
    >>> tokenizer = Tokenizer(merges=())
    >>> encoded = encode_chat(tokenizer, conversation("hi", "yo"))
    >>> tokenizer.decode([i for i, m in zip(*encoded, strict=True) if m])
    'yo<|im_end|>'
    """
    require_turns(messages, last="assistant")
    return _encode(tokenizer, _spans(messages, template), template)


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], template: Template = CHATML
) -> list[int]:
    """A conversation that waits for its answer: ids that end with an opened turn.

    They begin the ids of ``encode_chat(tokenizer, [*messages, answer])``, whatever the
    answer is.

    Raises:
        ValueError: as ``encode_chat``; the last turn must be the user's.

    >>> from minillm.data import conversation
    >>> tokenizer = Tokenizer(merges=())
    >>> tokenizer.decode(encode_prompt(tokenizer, conversation("hi")))
    '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    require_turns(messages, last="user")
    opened = _Span(template.assistant.opening, ours=True, target=False)
    return _encode(tokenizer, [*_spans(messages, template), opened], template).ids


def chat_text(messages: Sequence[Message], template: Template = CHATML) -> str:
    """A conversation as text, to look at. Encoding it would obey marks in contents.

    >>> from minillm.data import conversation
    >>> print(chat_text(conversation("hi", "yo")), end="")
    <|im_start|>user
    hi<|im_end|>
    <|im_start|>assistant
    yo<|im_end|>
    """
    return "".join(span.text for span in _spans(messages, template))


def show_mask(tokenizer: Tokenizer, encoded: Encoded) -> str:
    """One line for each token: whether it is scored, its id and its text.

    >>> from minillm.data import conversation
    >>> tokenizer = Tokenizer(merges=())
    >>> encoded = encode_chat(tokenizer, conversation("hi", "yo"))
    >>> print("\\n".join(show_mask(tokenizer, encoded).splitlines()[-4:]))
    target     121  'y'
    target     111  'o'
    target     258  '<|im_end|>'
    seen        10  '\\n'
    """
    return "\n".join(
        f"{'target' if target else 'seen':<8}{id_:>6}  {tokenizer.decode([id_])!r}"
        for id_, target in zip(*encoded, strict=True)
    )


def stop_token(tokenizer: Tokenizer, template: Template = CHATML) -> int:
    """The id that closes the assistant's turn, at which generation stops.

    >>> stop_token(Tokenizer(merges=()))
    258
    """
    _check_marks(tokenizer, template)
    return tokenizer.special_tokens[template.assistant.closing]


def _spans(messages: Iterable[Message], template: Template) -> Iterator[_Span]:
    """What a conversation is made of, in order."""
    for message in messages:
        marks, scored = template.marks(message.role), message.role == "assistant"
        yield _Span(marks.opening, ours=True, target=False)
        yield _Span(message.content, ours=False, target=scored)
        yield _Span(marks.closing, ours=True, target=scored)
        yield _Span(marks.after, ours=True, target=False)


def _encode(
    tokenizer: Tokenizer, spans: Iterable[_Span], template: Template
) -> Encoded:
    """Ids and mask, both from the same spans: the one place where either is made."""
    _check_marks(tokenizer, template)
    ids, mask = [], []
    for text, ours, target in spans:
        new = tokenizer.encode(text, template.special_names if ours else ())
        ids += new
        mask += [target] * len(new)
    return Encoded(ids, mask)


def _check_marks(tokenizer: Tokenizer, template: Template) -> None:
    has, marks = tokenizer.special_names, template.special_names
    need = f"a tokenizer with the special tokens {', '.join(marks)}"
    remedy = "make it with Tokenizer.train, or name them in special_names"
    require(set(marks) <= set(has), "tokenizer", has, need, remedy)
