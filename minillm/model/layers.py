"""The parts of a block that look at one position at a time: RMSNorm and SwiGLU.

A block reads the residual stream, computes something, and adds it back:

    x = x + attention(norm(x))        mixes positions     (attention.py)
    x = x + swiglu(norm(x))           mixes dimensions    (here)

Normalising the input of each branch and never the stream itself (pre-norm) leaves an
open road for gradients from the loss to the embedding.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.model.config import GPTConfig


def at_least_float32(x: Tensor) -> Tensor:
    """Lift half precisions to float32: squares and angles need the digits."""
    return x.float() if x.dtype.itemsize < 4 else x


class RMSNormFunction(torch.autograd.Function):
    r"""RMSNorm with its gradient by hand, in half of autograd's passes over memory.

    With :math:`r = 1 / \sqrt{mean(x^2) + \epsilon}` and incoming gradient g,

    .. math:: \nabla_w = \sum_{rows} g \odot x \, r, \qquad
              \nabla_x = r \, (g \odot w) - x \, \frac{r^3}{C} \sum_c g_c w_c x_c

    The second term is what normalising does to a gradient: it takes away the part that
    would only make x longer.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
        r = torch.rsqrt(mean_square / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        C = x.shape[-1]
        gx = g * x
        # A sum over rows, as one product.
        grad_weight = gx.reshape(-1, C).T @ r.reshape(-1)
        along = (gx @ weight).unsqueeze(-1)
        grad_x = (g * weight).mul_(r).addcmul_(x, along * r**3, value=-1 / C)
        return grad_x, grad_weight, None


class RMSNorm(nn.Module):
    r"""Divide each vector by its root mean square, then scale each dimension.

    .. math:: y = w \odot x / \sqrt{mean(x^2) + \epsilon}

    LayerNorm without the mean and without the bias: half the statistics, equal quality.

    Source: Zhang & Sennrich 2019, equation 4.

    >>> RMSNorm(4)(torch.full((1, 4), 3.0)).detach()
    tensor([[1.0000, 1.0000, 1.0000, 1.0000]])
    """

    def __init__(self, size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        weight = at_least_float32(self.weight)
        return RMSNormFunction.apply(at_least_float32(x), weight, self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    r"""A feed-forward layer whose hidden units are switched by a learned gate.

    .. math:: y = W_{down} \, (silu(W_{gate} x) \odot W_{up} x), \quad
              silu(z) = z \, \sigma(z)

    Source: Shazeer 2020, equation 6 (without biases).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
