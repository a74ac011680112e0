r"""The loss of a language model without its logits.

A batch of B x T tokens has B x T x V logits, and as many gradients: with a vocabulary
of some ten thousand tokens they are the largest tensors of a training step, by far. But
a token's loss needs its own row only, and the gradient of that row is known at once:

.. math:: \ell_t = \ln \sum_v e^{z_{tv}} - z_{t y_t}, \quad z_t = W h_t, \qquad
          \frac{\partial \ell_t}{\partial z_{tv}} = softmax(z_t)_v - [v = y_t]

So a chunk of tokens goes all the way, logits, loss and gradients of h and W, before the
next one begins, and only these gradients stay. Nothing here needs a kernel.

This is the scheme of Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989), section 3.2.
Wijmans et al. 2024 (Cut your losses, arXiv:2411.09009) go further and write not even a
chunk of logits to memory, but make them a second time in the backward pass.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require, require_count

IGNORE = -100  # as in torch: a target that is not scored


class ChunkedCrossEntropy(torch.autograd.Function):
    """The mean loss; its gradients are made in the forward pass and wait."""

    @staticmethod
    def forward(ctx, h: Tensor, W: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wide = torch.promote_types(h.dtype, torch.float32)
        loss, n = h.new_zeros((), dtype=wide), (targets != IGNORE).sum()
        need_h, need_W = ctx.needs_input_grad[:2]
        dh = torch.zeros_like(h) if need_h else None
        dW = torch.zeros_like(W, dtype=wide) if need_W else None
        for start in range(0, len(h), chunk):
            rows = slice(start, start + chunk)
            scored = targets[rows] != IGNORE
            h_c, y = h[rows][scored], targets[rows][scored, None]
            z = (h_c @ W.T).to(wide)  # chunk V, the only logits there are
            lse = z.logsumexp(-1, keepdim=True)
            loss += (lse - z.gather(1, y)).sum()
            if need_h or need_W:
                dz = z.sub_(lse).exp_().scatter_add_(1, y, -torch.ones_like(lse))
                dz = dz.div_(n).to(h.dtype)
                if need_h:
                    dh[rows][scored] = dz @ W
                if need_W:
                    dW += dz.T @ h_c
        ctx.save_for_backward(dh, dW)
        ctx.dtype = W.dtype
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple:
        dh, dW = ctx.saved_tensors
        dh = None if dh is None else g * dh
        dW = None if dW is None else (g * dW).to(ctx.dtype)
        return dh, dW, None, None


def chunked_cross_entropy(
    hidden: Float[Tensor, "... C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "..."],
    chunk: int = 1024,
) -> Float[Tensor, ""]:
    r"""Mean surprise in nats, straight from the stream above the last block.

    .. math:: L = \frac{1}{N} \sum_t \left( \ln \sum_v e^{w_v \cdot h_t}
                  - w_{y_t} \cdot h_t \right)

    over the N targets that are not -100. Value and gradients are those of
    ``cross_entropy(hidden @ weight.T, targets)``; of the logits ``chunk`` rows exist at
    a time.

    Args:
        hidden: from ``model.hidden(tokens)``.
        weight: of the head, ``model.lm_head.weight``.
        targets: for each row of ``hidden`` the token that it should predict (see
            ``shift_targets``), or -100.
        chunk: tokens that go through the head together; fewer save memory, too few
            make the matrix products small.

    Raises:
        ValueError: shapes, types or devices that do not belong together, a target that
            is no token, or none at all.

    Source: Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989), section 3.2.

    >>> h, W = torch.zeros(1, 3, 8), torch.randn(4, 8)
    >>> chunked_cross_entropy(h, W, torch.tensor([[0, 1, -100]]))   # ln 4
    tensor(1.3863)
    """
    require_count(chunk=chunk)
    h, y = hidden.flatten(0, -2), targets.flatten()
    V, C = weight.shape
    rows = f"of shape (..., C) with C = {C} like the weight"
    require(h.shape[-1] == C, "hidden", hidden, rows, "pass the stream, not logits")
    same = f"of {weight.dtype} on {weight.device} like the weight"
    kinds = (h.dtype, h.device) == (weight.dtype, weight.device)
    require(kinds, "hidden", f"{h.dtype} on {h.device}", same, "use .to(...)")
    shape = tuple(hidden.shape[:-1])
    ok = targets.shape == shape and not targets.is_floating_point()
    require(ok, "targets", targets, f"ints of shape {shape}", "one for each row")
    scored = y[y != IGNORE]
    ok = len(scored) > 0 and 0 <= int(scored.min()) <= int(scored.max()) < V
    remedy = "mask padding with -100, and score at least one token"
    require(ok, "targets", scored, f"some tokens in 0..{V - 1}", remedy)
    return ChunkedCrossEntropy.apply(h, weight, y, chunk)
