r"""RMSNorm, the first kernel: little arithmetic, much memory.

.. math:: r = 1 / \sqrt{mean(x^2) + \epsilon}, \qquad y = w \odot x \, r

.. math:: dx = r \, (w \odot dy) - x \, \frac{r^3}{C} \sum_c w_c \, dy_c \, x_c, \qquad
          dw = \sum_{rows} dy \odot x \, r

A row of C numbers takes about 4 C operations and has to be read and written once, so
its time is that of the memory: 2 C numbers forward, 3 C backward. Written operation by
operation it moves several times as much. The one difficulty is dw, to which all rows
add: each program sums a strip of rows, and the strips' sums are added at the end, in
the same order every time.

Here is the twin in PyTorch, strip by strip; ``triton_rmsnorm`` has the kernels.

Source: Zhang & Sennrich 2019 (arXiv:1910.07467), equation 4.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_positive
from minillm.kernels.choice import Passes, runs_in_triton

STRIP = 16  # rows of a program


def forward(
    x: Float[Tensor, "N C"], w: Float[Tensor, " C"], eps: float
) -> tuple[Float[Tensor, "N C"], tuple[Float[Tensor, " N"]]]:
    """The normalised rows, and r to keep for the backward pass."""
    y, r = torch.empty_like(x), x.new_empty(len(x))
    for start in range(0, len(x), STRIP):
        rows = slice(start, start + STRIP)
        r[rows] = torch.rsqrt(x[rows].square().mean(-1) + eps)
        y[rows] = x[rows] * r[rows, None] * w
    return y, (r,)


def backward(
    dy: Float[Tensor, "N C"],
    x: Float[Tensor, "N C"],
    w: Float[Tensor, " C"],
    r: Float[Tensor, " N"],
    eps: float,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, " C"]]:
    """The gradients of x and w."""
    dx, dw = torch.empty_like(x), []
    for start in range(0, len(x), STRIP):
        rows = slice(start, start + STRIP)
        x_r, dy_r, r_r = x[rows], dy[rows], r[rows, None]
        along = (dy_r * w * x_r).mean(-1, keepdim=True)
        dx[rows] = r_r * (dy_r * w - x_r * r_r**2 * along)
        dw.append((dy_r * x_r * r_r).sum(0))
    return dx, torch.stack(dw).sum(0)


def rms_norm(
    x: Float[Tensor, "... C"],
    weight: Float[Tensor, " C"],
    eps: float = 1e-5,
    impl: str = "auto",
) -> Float[Tensor, "... C"]:
    r"""Divide each row by its root mean square, then scale each of its numbers.

    .. math:: y = w \odot x / \sqrt{mean(x^2) + \epsilon}

    Sums are taken in float32 at least.

    Args:
        x: rows of C numbers; a tensor that is not contiguous is copied.
        weight: of x's type and on its device.
        eps: keeps a row of zeros from dividing by zero.
        impl: see ``runs_in_triton``.

    Raises:
        ValueError: shapes, types or devices that do not belong together, or rows that
            do not fit into one program of Triton.

    Source: Zhang & Sennrich 2019, equation 4.

    >>> rms_norm(torch.tensor([[3.0, -3.0]]), torch.ones(2))
    tensor([[ 1.0000, -1.0000]])
    """
    shape = tuple(x.shape[-1:])
    require(x.numel() > 0, "x", x, "of at least one row of numbers", "give one")
    require(weight.shape == shape, "weight", weight, f"of shape {shape}", "match x")
    kind = f"{weight.dtype} on {weight.device}"
    same = f"{x.dtype} on {x.device}"
    require(kind == same, "weight", kind, f"{same} like x", "use .to(...)")
    require(x.is_floating_point(), "x", x, "floating-point", "use .float()")
    require_positive(eps=eps)
    rows, passes = x.reshape(-1, *shape), (forward, backward)
    if runs_in_triton(impl, x):
        from minillm.kernels import triton_rmsnorm as kernels

        passes = kernels.forward, kernels.backward
    else:
        wide = torch.promote_types(x.dtype, torch.float32)
        rows, weight = rows.to(wide), weight.to(wide)
    return Passes.apply(*passes, (eps,), rows, weight).view(x.shape).to(x.dtype)
