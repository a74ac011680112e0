"""Attention as the formula says it, all scores at once: what tiles are judged by."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def dense_attention(q, k, v, causal=True, window=None, lengths=None) -> Tensor:
    """The arguments and the result of ``flash_attention``, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    k, v = (x.repeat_interleave(H // k.shape[1], dim=1) for x in (k, v))
    both = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    rows = []
    for b in range(B):
        Lq, Lk = (Tq, Tk) if lengths is None else (int(x[b]) for x in both)
        p = torch.arange(Lq, device=q.device)[:, None] + Lk - Lq
        j = torch.arange(Lk, device=q.device)
        seen = (j <= p) if causal else (j == j) & (p == p)
        if window is not None:
            seen = seen & ((p - j).abs() < window)
        s = q[b, :, :Lq] @ k[b, :, :Lk].mT / D**0.5
        P = torch.nan_to_num(s.masked_fill(~seen, -torch.inf).softmax(-1))
        rows.append(F.pad(P @ v[b, :, :Lk], (0, 0, 0, Tq - Lq)))
    return torch.stack(rows)


def heads(B, H, G, Tq, Tk, D, dtype=torch.float64, device="cpu", scale=1.0):
    """Random queries, keys and values that want gradients."""
    shapes = (B, H, Tq, D), (B, G, Tk, D), (B, G, Tk, D)
    scales = scale, scale, 1.0
    return [
        (torch.randn(shape, dtype=torch.float64) * by)
        .to(device, dtype)
        .requires_grad_()
        for shape, by in zip(shapes, scales, strict=True)
    ]


def relative_errors(out, wanted, inputs, judges) -> list[float]:
    """|x - y| / |y| of the results and of every gradient, for one random gradient.

    Where y is smaller than 1 (a softmax of one key has no gradient) |x - y|.
    """
    g = torch.randn_like(wanted)
    found = [out, *torch.autograd.grad(out, inputs, g.to(out.dtype))]
    right = [wanted, *torch.autograd.grad(wanted, judges, g)]
    return [
        float((x - y).detach().norm() / y.norm().clamp(min=1).detach())
        for x, y in zip(found, right, strict=True)
    ]


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that was made inside."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return result
