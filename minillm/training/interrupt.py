"""Ctrl-C without a torn step: the first one waits until the work in hand is saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C was pressed, and what had been done until then is saved."""


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that a step is never cut in half.

    A second one is an ordinary KeyboardInterrupt. Signals reach only the main thread;
    elsewhere the flag stays down and nothing changes.

    >>> with deferred_interrupt() as flag:
    ...     signal.raise_signal(signal.SIGINT)
    ...     flag.is_set()
    True
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number, frame) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
