"""One sentence for every bad input: which argument, what it was, what to do instead.

A door (command line, constructor, loader, trainer) checks what comes in, so that the
mathematics behind it can stay pure. ``require`` is the helper for it:

    require(1 <= rank <= limit, "rank", rank, f"in 1..{limit}", "choose a smaller rank")

and the others are what it is asked most often.
"""

from collections.abc import Iterable
from pathlib import Path
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
        value: what was given; shown shortened if it is long, a tensor by its shape and
            type.
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
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shown = f"{tuple(value.shape)} of {value.dtype}"
    if len(shown) > 120:
        shown = shown[:117] + "..."
    raise error(f"{argument} must be {must_be}, got {shown}; {remedy}")


def is_count(value: Any) -> bool:
    """True for an int of at least 1; ``True`` itself is no count.

    >>> is_count(3), is_count(0), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def require_count(**values: Any) -> None:
    """Require that each value is an int of at least 1; see ``is_count``.

    >>> require_count(steps=0)
    Traceback (most recent call last):
    ValueError: steps must be an int of at least 1, got 0; give a positive whole number
    """
    for name, value in values.items():
        remedy = "give a positive whole number"
        require(is_count(value), name, value, "an int of at least 1", remedy)


def require_positive(**values: float) -> None:
    """Require that each number is above 0 (and so is one: nothing is above NaN).

    >>> require_positive(lr=-1.0)
    Traceback (most recent call last):
    ValueError: lr must be positive, got -1.0; give a number above 0
    """
    for name, value in values.items():
        require(value > 0, name, value, "positive", "give a number above 0")


def require_one_of(options: Iterable, **values: Any) -> None:
    """Require that each value is one of the options.

    >>> require_one_of(("ddp", "fsdp"), parallel="zero")
    Traceback (most recent call last):
    ValueError: parallel must be one of ('ddp', 'fsdp'), got 'zero'; choose one of them
    """
    known = tuple(options)
    for name, value in values.items():
        require(value in known, name, value, f"one of {known}", "choose one of them")


def require_mask(mask: Any, shape: tuple[int, ...]) -> None:
    """Require that a mask is ``None`` or a tensor of truth values of that shape.

    A mask of numbers would pass unseen: ``~`` of the integer 1 is -2.

    >>> import torch
    >>> require_mask(torch.ones(4), (4,))
    Traceback (most recent call last):
    ValueError: mask must be a bool tensor of shape (4,), got (4,) of torch.float32; ...
    """
    ok = mask is None or (mask.shape == shape and str(mask.dtype) == "torch.bool")
    remedy = "give one for each token and use mask.bool()"
    require(ok, "mask", mask, f"a bool tensor of shape {shape}", remedy)


def differences(then: dict, now: dict) -> dict:
    """What two descriptions do not have in common: for each name, then and now.

    >>> differences({"lr": 1, "steps": 9}, {"lr": 2, "steps": 9, "seed": 0})
    {'lr': (1, 2), 'seed': (None, 0)}
    """
    pairs = {name: (then.get(name), now.get(name)) for name in then | now}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def require_file(path: str | Path, remedy: str) -> None:
    """Require that there is a file at ``path``.

    >>> require_file("no/such.txt", "correct the path")
    Traceback (most recent call last):
    FileNotFoundError: path must be a file, got 'no/such.txt'; correct the path
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file, got {str(path)!r}; {remedy}")
