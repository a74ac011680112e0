"""Half precision where it helps.

Autocast runs matrix products on bfloat16 copies of weights and activations; norms,
softmax and the loss stay in float32, and so do the weights, their gradients and the
optimizer's moments. bfloat16 has float32's range with 8 bits of precision, so no loss
scaling is needed.

What it does for memory: less than is often claimed. The 16 bytes a parameter of
weight, gradient and two moments stay; each weight gets a 2-byte copy on top; only
activations that products save shrink by half. It pays when activations dominate. What
it does for speed depends on the processor: on CPUs with bfloat16 instructions larger
models gain, tiny ones lose as much in conversions as they win in products.
``benchmarks/training.py`` measures it.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from minillm.errors import require_one_of

PRECISIONS = ("float32", "bfloat16")


def autocast(precision: str, device: str) -> AbstractContextManager:
    """Return the context for the forward pass.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``.
        device: ``"cpu"`` or ``"cuda"``, with or without a number.

    Raises:
        ValueError: another precision (float16 needs loss scaling).

    >>> with autocast("bfloat16", "cpu"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    require_one_of(PRECISIONS, precision=precision)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16)
