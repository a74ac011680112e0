"""Kernels: what dominates time or memory, written for how the hardware works.

Read ``linear_cross_entropy`` (memory alone), ``rmsnorm`` and ``triton_rmsnorm`` (the
first kernel), then attention: ``tiled_forward`` and ``triton_forward``,
``tiled_backward`` and ``triton_backward``, and ``attention``, the door to them.
``choice`` picks Triton or its twin. Importing this room does not import Triton.
"""

from minillm.kernels.attention import flash_attention
from minillm.kernels.linear_cross_entropy import chunked_cross_entropy
from minillm.kernels.rmsnorm import rms_norm
