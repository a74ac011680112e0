"""Whether an answer is what was expected, and if not, in what it differs.

Numbers are compared to a relative 1e-4 of their scale (float32 is as good as float64),
shapes exactly, a list as a tensor of the same numbers. Tolerances are relative to the
largest expected number of a tensor, since an entry that cancels to nearly zero has no
correct digits of its own.
"""

import math
from typing import Any

import torch


def differs(answer: Any, expected: Any, rtol: float = 1e-4) -> str:
    """In what an answer differs from what was expected; "" if in nothing.

    >>> differs([1, 2], torch.tensor([1, 2]))
    ''
    >>> differs(torch.ones(3), torch.tensor(1.0))
    'returned shape (3,) where () is right'
    >>> differs(1.1, 1.0)
    'is off by 10 %'
    """
    if answer is None and expected is not None:
        return "returned None; is a `return` missing?"
    several = isinstance(expected, list | tuple) and any(
        isinstance(item, torch.Tensor | list | tuple | dict) for item in expected
    )
    right = None if several else as_numbers(expected)
    if right is not None:
        return _numbers_differ(as_numbers(answer), right, rtol)
    if isinstance(expected, list | tuple):
        if not isinstance(answer, list | tuple) or len(answer) != len(expected):
            return f"returned {_form(answer)} where {_form(expected)} is right"
        pairs = zip(answer, expected, strict=True)
        return next(filter(None, (differs(a, e, rtol) for a, e in pairs)), "")
    if isinstance(expected, dict):
        if not isinstance(answer, dict) or set(answer) != set(expected):
            return f"returned {_form(answer)} where {_form(expected)} is right"
        # each by itself: a dollar must show beside a million
        wrong = {key: differs(answer[key], expected[key], rtol) for key in expected}
        return next((f"{w} ({key})" for key, w in wrong.items() if w), "")
    same = type(answer) is type(expected) and answer == expected
    return "" if same else f"returned {_form(answer)}, which is not what is right"


def as_numbers(value: Any) -> torch.Tensor | None:
    """A tensor, number, or list of such as float64; ``None`` for anything else.

    >>> as_numbers([True, 2])
    tensor([1., 2.], dtype=torch.float64)
    >>> as_numbers([[1, 2], [3, 4]]).shape
    torch.Size([2, 2])
    """
    if isinstance(value, int) and abs(value) > 2**1000:
        value = math.inf if value > 0 else -math.inf  # no float is as large
    if isinstance(value, torch.Tensor | bool | int | float):
        return torch.as_tensor(value, dtype=torch.float64)
    if not isinstance(value, list | tuple):
        return None
    parts = [as_numbers(item) for item in value]
    if any(part is None or part.shape != parts[0].shape for part in parts):
        return None
    return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _numbers_differ(
    answer: torch.Tensor | None, right: torch.Tensor, rtol: float
) -> str:
    if answer is None:
        return "returned something else than numbers"
    if answer.shape != right.shape:
        shapes = tuple(answer.shape), tuple(right.shape)
        return f"returned shape {shapes[0]} where {shapes[1]} is right"
    odd = ~answer.isfinite()
    if (odd & right.isfinite()).any():
        return f"returned NaN or infinity in {int(odd.sum())} of {odd.numel()} places"
    if torch.allclose(answer, right, rtol=0, atol=0, equal_nan=True):
        return ""
    scale = right[right.isfinite()].abs().max() if right.isfinite().any() else 1.0
    off = float((answer - right).abs().max() / (scale or 1.0))
    return "" if off <= rtol else f"is off by {100 * off:.2g} %"


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
