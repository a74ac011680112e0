"""Which implementation runs, Triton's or its twin, and what autograd knows of it.

Triton has wheels for Linux only, and needs a GPU or its interpreter, which runs kernels
one program after another on the CPU. So nothing here imports it before it is asked for.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from minillm.errors import require, require_one_of


def runs_in_triton(impl: str, x: Tensor) -> bool:
    """Whether Triton shall work on ``x``; "auto" says so for tensors on a GPU.

    Args:
        impl: "auto", "triton" or "tiled", the twin.

    Raises:
        ValueError: another ``impl``, or "triton" where it is not installed, or for a
            tensor on the CPU without the interpreter.

    >>> x = torch.ones(1)
    >>> runs_in_triton("auto", x), runs_in_triton("tiled", x)
    (False, False)
    """
    require_one_of(("auto", "triton", "tiled"), impl=impl)
    installed = importlib.util.find_spec("triton") is not None
    if impl != "triton":
        return impl == "auto" and installed and x.is_cuda
    remedy = 'pip install -c constraints.txt triton (Linux only), or take impl="tiled"'
    require(installed, "impl", impl, '"tiled" where triton is not installed', remedy)
    from minillm.kernels.triton_forward import INTERPRETED

    remedy = 'set TRITON_INTERPRET=1 before Python starts, or take impl="tiled"'
    where = f"{impl!r} with a tensor on {x.device}"
    possible = '"tiled" for tensors that compiled kernels cannot reach'
    require(x.is_cuda or INTERPRETED, "impl", where, possible, remedy)
    return True


class Passes(torch.autograd.Function):
    """A forward and a backward pass, written by hand, as one operation.

    ``forward(*inputs, *extra)`` gives the output and a tuple of what to keep;
    ``backward(d_out, *inputs, *kept, *extra)`` a gradient for each input.
    """

    @staticmethod
    def forward(
        ctx, forward: Callable, backward: Callable, extra: tuple, *inputs: Tensor
    ) -> Tensor:
        inputs = [x.contiguous() for x in inputs]
        with torch.cuda.device_of(inputs[0]):  # Triton starts where CUDA stands
            out, kept = forward(*inputs, *extra)
        ctx.save_for_backward(*inputs, *kept)
        ctx.rest = backward, extra
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple:
        backward, extra = ctx.rest
        with torch.cuda.device_of(d_out):
            grads = backward(d_out.contiguous(), *ctx.saved_tensors, *extra)
        return None, None, None, *grads
