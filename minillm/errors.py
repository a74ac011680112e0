"""One sentence for every bad input: which argument, what it was, what to do instead.

A door (command line, constructor, loader, trainer) checks what comes in, so that the
mathematics behind it can stay pure. ``require`` is the only helper for it:

    require(1 <= rank <= limit, "rank", rank, f"in 1..{limit}", "choose a smaller rank")
"""

from typing import Any


def require(
    ok: bool,
    argument: str,
    value: Any,
    must_be: str,
    remedy: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raise ``error`` with one clear sentence unless ``ok``.

    Args:
        ok: the condition that the caller checked.
        argument: name of the argument, as the user wrote it.
        value: what was given; shown shortened if it is long.
        must_be: what would be right, to be read after "must be".
        remedy: what the user can do, in the imperative.

    Raises:
        error: if ``ok`` is false.

    >>> require(False, "rank", 128, "in 1..64", "choose a smaller rank")
    Traceback (most recent call last):
    ValueError: rank must be in 1..64, got 128; choose a smaller rank
    """
    if ok:
        return
    shown = repr(value)
    if len(shown) > 120:
        shown = shown[:117] + "..."
    raise error(f"{argument} must be {must_be}, got {shown}; {remedy}")


def is_count(value: Any) -> bool:
    """True for an int of at least 1; ``True`` itself is no count.

    >>> is_count(3), is_count(0), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
