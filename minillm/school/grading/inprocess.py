"""The subject that lives here: the notebook's, and the one inside the child process.

Arguments and results go through the wire's own conversion even though no wire is
crossed. So an answer cannot change the fixtures, and what cannot be sent to a grader is
refused in the notebook, too.
"""

import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from minillm.school.grading.subject import AnswerError
from minillm.school.grading.wire import Handle, WireError, pack, unpack

NO_GRADIENT = "has no gradient: a .detach(), .item() or float() on the way cuts it off"


class InProcess:
    """Asks the objects of a namespace; see ``Subject`` for the questions.

    >>> InProcess({"double": lambda x: 2 * x}).call("double", torch.ones(2))
    tensor([2., 2.])
    """

    def __init__(self, namespace: Mapping[str, Any]):
        self.namespace = namespace
        self.objects: list[Any] = []

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """See ``Subject``."""
        return _answer(lambda: self._find(name)(*self._in(args), **self._in(kwargs)))

    def grad(
        self, name: str | Handle, inputs: Sequence, wrt: Sequence, **kwargs: Any
    ) -> list:
        """See ``Subject``."""

        @torch.enable_grad()  # a notebook may have switched it off
        def gradients() -> list:
            function, given = self._find(name), self._in(list(inputs))
            places = [place for place in wrt if isinstance(place, int)]
            for place in places:
                given[place].requires_grad_()
            at = [given[p] if p in places else function.get_parameter(p) for p in wrt]
            result = function(*given, **self._in(kwargs))
            result = result[0] if isinstance(result, tuple) else result
            if not getattr(result, "requires_grad", False):
                raise AnswerError("gradient", NO_GRADIENT)
            found = torch.autograd.grad(result.sum(), at, allow_unused=True)
            pairs = zip(found, at, strict=True)
            return [torch.zeros_like(x) if g is None else g for g, x in pairs]

        return _answer(gradients)

    def make(self, cls: str, *args: Any, **kwargs: Any) -> Handle:
        """See ``Subject``."""

        def keep() -> None:
            made = self._find(cls)(*self._in(args), **self._in(kwargs))
            self.objects.append(made)

        _answer(keep)
        return Handle(len(self.objects) - 1)

    def method(self, handle: Handle, name: str, *args: Any, **kwargs: Any) -> Any:
        """See ``Subject``."""
        found = self._find(handle)
        return _answer(
            lambda: getattr(found, name)(*self._in(args), **self._in(kwargs))
        )

    def state(self, handle: Handle) -> dict:
        """See ``Subject``."""
        return _answer(lambda: dict(self._find(handle).state_dict()))

    def _find(self, name: str | Handle) -> Any:
        if isinstance(name, Handle):
            if name.number < len(self.objects):
                return self.objects[name.number]
            raise AnswerError("missing", "lost an object when its process ended")
        if name.startswith("torch.nn."):
            return getattr(torch.nn, name.removeprefix("torch.nn."))
        if name not in self.namespace:
            raise AnswerError("missing", f"has nothing that is called {name}")
        return self.namespace[name]

    def _in(self, value: Any) -> Any:
        """A copy of an argument, with the objects that its handles stand for."""
        if isinstance(value, Handle):
            return self._find(value)
        if isinstance(value, list | tuple):
            return type(value)(self._in(item) for item in value)
        if isinstance(value, dict):
            return {key: self._in(item) for key, item in value.items()}
        return unpack(*pack(value))


def _answer(ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns, as it would arrive over the wire.

    Raises:
        AnswerError: whatever went wrong, in words.
    """
    try:
        return unpack(*pack(ask()))
    except AnswerError:
        raise
    except WireError as error:
        raise AnswerError("wire", f"returned something unusable: {error}") from None
    except (Exception, SystemExit) as error:
        raise in_words(error) from error


def in_words(error: BaseException) -> AnswerError:
    """An exception of the student's code as a sentence.

    >>> in_words(ValueError("no rows")).sentence
    'raised ValueError: no rows'
    """
    if isinstance(error, NotImplementedError):
        return AnswerError("unwritten", "is not written yet")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return AnswerError("memory", "asked for more memory than a check may use")
    kind = type(error).__name__
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else said[:297] + "..."
    sentence = f"raised {kind}: {said}" if said else f"raised {kind}"
    return AnswerError(kind, sentence + _line_of(error.__traceback__))


def _line_of(trace: TracebackType | None) -> str:
    """The line of the answer that failed: the deepest one in the answer's own file."""
    frames = traceback.extract_tb(trace)
    theirs = next((f.filename for f in frames if f.filename != __file__), None)
    lines = [f for f in frames if f.filename == theirs]
    line = linecache.getline(theirs, lines[-1].lineno).strip() if lines else ""
    return f", at `{line[:100]}`" if line else ""
