"""Which implementation runs: Triton's kernels, or their twin in PyTorch.

Triton has wheels for Linux only, and needs a GPU or its interpreter, which runs kernels
one program after another on the CPU. So nothing here imports it before it is asked for.
"""

import importlib.util

from torch import Tensor

from minillm.errors import require, require_one_of


def runs_in_triton(impl: str, x: Tensor) -> bool:
    """Whether Triton shall work on ``x``; "auto" says so for tensors on a GPU.

    Args:
        impl: "auto", "triton" or "tiled", the twin.

    Raises:
        ValueError: another ``impl``, or "triton" where it is not installed, or for a
            tensor on the CPU without the interpreter.

    >>> import torch
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
