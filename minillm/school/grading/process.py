"""The subject in a child process: it may hang, eat memory, crash or lie; we go on.

A call that does not end is ended by a clock of ours, whatever the child does. After a
death the next call finds a new child, so a crash costs the calls that caused it and no
other; but patience ends after a few deaths, or one answer would cost the class an hour.

This is no sandbox yet: the child has its user's rights. It has a folder of its own, few
environment variables, and limits on memory, processor time and file size where the
platform has them.
"""

import threading
from collections.abc import Sequence
from typing import Any

from minillm.school.grading.subject import AnswerError
from minillm.school.grading.wire import Handle, WireError, receive, send
from minillm.school.grading.workshop import Child, Limits, Workshop


class ProcessSubject:
    """Asks an answer that lives in a child; see ``Subject`` for the questions.

    Args:
        source: Python text that defines what the check asks for.
        workshop: where children come from.
        limits: what the answer may use.
    """

    def __init__(self, source: str, workshop: Workshop, limits: Limits | None = None):
        self.source, self.workshop = source, workshop
        self.limits = limits or Limits()
        self.printed, self._deaths = "", 0
        self._child: Child | None = None
        self._refusal: AnswerError | None = None

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """See ``Subject``."""
        return self._ask("call", name, *args, **kwargs)

    def grad(
        self, name: str | Handle, inputs: Sequence, wrt: Sequence, **kwargs: Any
    ) -> list:
        """See ``Subject``."""
        return self._ask("grad", name, list(inputs), list(wrt), **kwargs)

    def make(self, cls: str, *args: Any, **kwargs: Any) -> Handle:
        """See ``Subject``."""
        return self._ask("make", cls, *args, **kwargs)

    def method(self, handle: Handle, name: str, *args: Any, **kwargs: Any) -> Any:
        """See ``Subject``."""
        return self._ask("method", handle, name, *args, **kwargs)

    def state(self, handle: Handle) -> dict:
        """See ``Subject``."""
        return self._ask("state", handle)

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, question: str, *args: Any, **kwargs: Any) -> Any:
        if self._refusal:
            raise AnswerError(self._refusal.kind, self._refusal.sentence)
        if self._child is None:
            self._child = self._started()
            try:
                request = {"ask": "load", "source": self.source}
                self._exchange(request, self.limits.load_seconds)
            except AnswerError as error:
                self._refusal = error  # it would fail in the same way again
                raise
        request = {"ask": question, "args": list(args), "kwargs": kwargs}
        return self._exchange(request, self.limits.seconds)

    def _started(self) -> Child:
        try:
            return self.workshop.start(self.limits)
        except (EOFError, OSError, ValueError) as trouble:
            sentence = f"got no process to run in ({type(trouble).__name__})"
            raise AnswerError("start", f"{sentence}; ask your instructor") from None

    def _exchange(self, request: dict, seconds: float) -> Any:
        """One question and its answer, against the clock."""
        late = threading.Event()
        clock = threading.Timer(seconds, self._too_late, [late, self._child])
        clock.start()
        try:
            send(self._child.writer, request)
            reply = receive(self._child.reader)
            value, error, printed = _parts(reply)
        except (EOFError, OSError, WireError, ValueError) as trouble:
            raise self._buried(late.is_set() and seconds, trouble) from None
        finally:
            clock.cancel()
        self.printed = (self.printed + printed)[: self.limits.printed]
        if error is not None:
            raise error
        return value

    @staticmethod
    def _too_late(late: threading.Event, child: Child) -> None:
        late.set()
        child.end()

    def _buried(self, late: float, trouble: Exception) -> AnswerError:
        """End the child, count its death, and say how; ``late`` is how long it had."""
        self.close()
        self._deaths += 1
        error = AnswerError("died", "ended its process: an exit, or a crash")
        if late:
            error = AnswerError("timeout", f"did not end within {late:g} seconds")
        elif isinstance(trouble, WireError):
            error = AnswerError("wire", f"spoke out of turn: {trouble}")
        if self._deaths >= self.limits.deaths:
            times = f"was given up after {self._deaths} such ends; the last time it"
            self._refusal = AnswerError(error.kind, f"{times} {error}")
        return error


def _parts(reply: Any) -> tuple[Any, AnswerError | None, str]:
    """Value, error and printed words of a reply; the child may have forged it."""
    if not isinstance(reply, dict) or not isinstance(reply.get("printed"), str):
        raise WireError("a reply has the wrong form")
    if "error" not in reply:
        return reply.get("value"), None, reply["printed"]
    error = reply["error"]
    two = isinstance(error, list) and len(error) == 2
    if not two or not all(isinstance(word, str) and len(word) < 1000 for word in error):
        raise WireError("a reply has the wrong form")
    return None, AnswerError(*error), reply["printed"]
