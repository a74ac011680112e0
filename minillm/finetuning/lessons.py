r"""From a file of conversations to lessons: what is dropped, and what is held out.

    lines -> read -> short enough -> no copies, none nearly -> two sides -> no leaks

Every line of the file either becomes a lesson or is named with the reason why not, so
the counts add up. Two texts are near when they share most of their runs of n words,

.. math:: J(a, b) = \frac{|A \cap B|}{|A \cup B|} \geq threshold

Three decisions in which such pipelines go wrong:

- *A copy is a question and its answer.* Whoever compares answers alone throws away all
  questions but one to which the answer is "yes"; so both must be near.
- *A side belongs to the question*: a hash of its words, and not a draw. The same
  question with another answer goes to the same side, and a file that grows or is
  shuffled moves nobody. A hash knows nothing of likeness, so what is near to a
  held-out question is then taken out of training, never the other way round.
- *Near in words is not near in meaning*: "what is 3 + 4" and "what is 3 + 5" differ by
  a mark. Look at what was dropped before you believe a threshold.

Source: Lee et al. 2022 (arXiv:2107.06499), sections 4.1 and 4.2; Broder 1997 for J.
Differs from Lee et al.: J is counted for all pairs of questions, where they estimate it
by MinHash; that is for thousands of lessons, not for millions. And each copy that is
dropped is near to one that is kept, where they keep one of each connected component.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from minillm.data.chat import Encoded, encode_chat
from minillm.data.messages import Message
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.finetuning.formats import read_conversation
from minillm.finetuning.likeness import near_texts, normalise, similarity


@dataclass(frozen=True)
class Lessons:
    """What became of each line: a lesson on one of two sides, or a reason.

    Args:
        train, held_out: ids and mask, by the number of the line.
        dropped: for each stage, the reason by the number of the line.
    """

    train: dict[int, Encoded]
    held_out: dict[int, Encoded]
    dropped: dict[str, dict[int, str]]

    def report(self) -> str:
        """How many became what, with the numbers of the first five of each."""
        parts = {"to train on": self.train, "held out": self.held_out} | self.dropped
        told = [f"{len(part)} {name} {[*part][:5]}" for name, part in parts.items()]
        return "\n".join(told)


def prepare_lessons(
    lines: Iterable[str],
    tokenizer: Tokenizer,
    T: int,
    share: float = 0.1,
    threshold: float = 0.8,
    n: int = 3,
    template: Template = CHATML,
) -> Lessons:
    """Read, filter, compare, split and encode.

    The same lines in another order give the same lessons; what was kept, prepared
    again, is kept again.

    Args:
        lines: JSON, in a format that ``read_conversation`` knows.
        tokenizer: the model's own.
        T: tokens that fit, the marks of the template among them.
        share: of all possible questions that are held out, 0 to 1.
        threshold: from this J on two texts are near; 1 for the same runs of words.
        n: words in a run.
        template: the marks.

    Raises:
        ValueError: T or n that is no count, a share outside 0..1, a threshold outside
            0..1 or of 0; as ``encode_chat`` for a tokenizer without the marks.

    >>> line = '{"instruction": "%s", "output": "%s"}'
    >>> pairs = [("hi", "yo"), ("HI", "yo"), ("Who?", ""), ("Why?", "why not " * 9)]
    >>> lessons = prepare_lessons([line % p for p in pairs], Tokenizer(()), 60, share=0)
    >>> print(lessons.report())
    1 to train on [2]
    0 held out []
    1 unreadable [3]
    1 too long [4]
    1 copies [1]
    0 near copies []
    0 near a held-out question []
    >>> lessons.dropped["too long"]
    {4: '97 tokens, and T = 60'}
    """
    require_count(T=T)
    require(0 <= share <= 1, "share", share, "in 0..1", "try 0.1")
    require(0 < threshold <= 1, "threshold", threshold, "in 0..1, not 0", "try 0.8")
    chats, unreadable = read_lines(lines)
    rows = {i: encode_chat(tokenizer, chat, template) for i, chat in chats.items()}
    sizes = {i: len(row.ids) for i, row in rows.items()}
    long = {i: f"{size} tokens, and T = {T}" for i, size in sizes.items() if size > T}
    chats = {i: chat for i, chat in chats.items() if i not in long}
    asked = {i: question(chat) for i, chat in chats.items()}
    near = near_texts(asked, threshold, n)
    equal, similar = find_copies(chats, near, threshold, n)
    kept = [i for i in chats if i not in equal | similar]
    held_out = {i for i in kept if is_held_out(asked[i], share)}
    touched = {i: near[i] & held_out for i in kept if i not in held_out}
    leaks = {i: f"that of line {min(js)}" for i, js in touched.items() if js}
    stages = {"unreadable": unreadable, "too long": long, "copies": equal}
    stages |= {"near copies": similar, "near a held-out question": leaks}
    train = {i: rows[i] for i in touched if i not in leaks}
    return Lessons(train, {i: rows[i] for i in kept if i in held_out}, stages)


def read_lines(
    lines: Iterable[str],
) -> tuple[dict[int, list[Message]], dict[int, str]]:
    """The conversations that can be learned from, and why the other lines cannot.

    Both by the number of the line, from 1. ``read_jsonl`` stops at the first fault. No
    question and no answer may be empty, in the middle of a conversation neither.

    >>> read_lines(['{"instruction": "hi", "output": "yo"}', "", "[]"])[1].keys()
    dict_keys([2, 3])
    """
    chats, reasons = {}, {}
    for number, line in enumerate(lines, 1):
        try:
            chat = read_conversation(json.loads(line))
            # To encode is also to find halves of surrogates, which are no text.
            said = all(m.content.strip().encode() or m.role == "system" for m in chat)
            require(said, "each turn", line, "some words", "leave it out")
            chats[number] = chat
        except ValueError as error:  # that JSON or text is broken is one as well
            reasons[number] = str(error)
    return chats, reasons


def find_copies(
    chats: dict[int, list[Message]], near: dict[int, set[int]], threshold: float, n: int
) -> tuple[dict[int, str], dict[int, str]]:
    """Conversations equal, and those near, to another that is kept.

    Args:
        chats: by number, in any order: who is kept depends on what is said.
        near: for each those with a near question; the answers are compared here.
        threshold, n: of ``prepare_lessons``.

    Returns:
        of whom they are copies, for those with the same words, normalised, in all
        turns, and for the others.
    """
    keys = {i: [(m.role, normalise(m.content)) for m in c] for i, c in chats.items()}
    said = {i: answers(chat) for i, chat in chats.items()}
    kept, equal, similar = set(), {}, {}
    for i in sorted(chats, key=lambda i: (repr(chats[i]), i)):
        others = {j: similarity(said[i], said[j], n) for j in near[i] & kept}
        found = {j for j, J in others.items() if threshold <= J}
        same = {j for j in found if keys[i] == keys[j]}
        if found:
            (equal if same else similar)[i] = f"of line {min(same or found)}"
        else:
            kept.add(i)
    return equal, similar


def question(chat: list[Message]) -> str:
    """What the user says first, by which a conversation is put on its side."""
    return next(message.content for message in chat if message.role == "user")


def answers(chat: list[Message]) -> str:
    """What the assistant says in all turns, one below the other."""
    return "\n".join(m.content for m in chat if m.role == "assistant")


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a question is held out: its hash, read as a number from 0 to 1, is low.

    What is held out at a smaller share is so at every larger one.

    >>> is_held_out("hi", 0.5) == is_held_out(" HI ", 0.5)
    True
    """
    digest = hashlib.sha256(normalise(prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
