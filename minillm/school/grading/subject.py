"""How a check sees an answer: five questions, asked the same way everywhere.

A check never touches the student's objects. It asks a ``Subject``, which may hold them
(``InProcess``, in the notebook) or speak to a child process that does
(``ProcessSubject``, in the grader). Arguments and answers are plain numbers, words and
arrays, so that both places give the same verdict.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from minillm.school.grading.wire import Handle


class AnswerError(Exception):
    """What the answer did instead of answering, as a sentence for the student.

    Args:
        kind: the name of the exception, or "missing", "unwritten", "wire", "timeout",
            "memory", "died"; two answers with one kind made the same mistake.
        sentence: what happened, to be read after "The answer".
    """

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind, self.sentence = kind, sentence


class Subject(Protocol):
    """The five questions. Tensors in and out; each may raise ``AnswerError``."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the function ``name`` returns."""

    def grad(
        self, name: str | Handle, inputs: Sequence, wrt: Sequence, **kwargs: Any
    ) -> list:
        """Gradients of the sum of the result.

        Args:
            name: a function, or the handle of a module.
            inputs: its arguments.
            wrt: places among the arguments, or names of the module's parameters.
        """

    def make(self, cls: str, *args: Any, **kwargs: Any) -> Handle:
        """An object of a class of the answer's, or of ``torch.nn``; it stays there."""

    def method(self, handle: Handle, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a method of that object returns."""

    def state(self, handle: Handle) -> dict:
        """The module's parameters and buffers by name."""
