r"""ZeRO by hand: n copies of the same state are n - 1 too many.

In data parallel training every process holds all weights, gradients and moments, and
all make the same step. ZeRO gives each process 1/n of every parameter to look after:

- **Stage 1**, the optimizer: sum gradients, but each process only its part
  (reduce-scatter); step that part; put the weights together again (all-gather).
- **Stage 2**, gradients too: sum each as soon as the backward pass has made it, and
  drop the whole. In code, the same call from another place.
- **Stage 3**, weights too: a layer's weight is put together when it is used and dropped
  after it. The adjoint of all-gather is reduce-scatter, so the gradient of the part
  comes out of autograd by itself.

Stages 1 and 2 send what an all-reduce sends, :math:`2 \frac{n-1}{n} S`, because that
*is* a reduce-scatter and an all-gather; stage 3 has to gather again for the backward
pass: :math:`3 \frac{n-1}{n} S`.

Only optimizers that treat each number by itself may step a part: Adam, not Muon, which
needs the matrix. A norm over parts is a sum over processes (``clip_parts``).

Source: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), sections 5 and 7. FSDP2, which
``minillm.training`` uses, is stage 3 with one message for a block, begun in advance.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from minillm.errors import require_one_of, require_positive
from minillm.systems.wire import Wire, pad
from minillm.training.distributed import World


def part_of(x: Tensor, wire: Wire) -> Tensor:
    """This process's 1/n of a tensor, flat; the end is filled up with zeros.

    >>> part_of(torch.ones(2, 2), Wire(World(rank=1, size=2)))
    tensor([1., 1.])
    """
    return pad(x.detach().flatten(), wire.size).view(wire.size, -1)[wire.rank].clone()


def whole_of(part: Tensor, shape: torch.Size, wire: Wire) -> Tensor:
    """Put the parts of all processes together."""
    return wire.all_gather(part.detach())[: shape.numel()].view(shape)


@torch.no_grad()
def clip_parts(parts: Iterable[nn.Parameter], max_norm: float, world: World) -> float:
    """Clip by the norm over the parts of *all* processes; return that norm.

    By its own norm each process would scale its parts by another factor, which turns
    the gradient.

    Raises:
        ValueError: a norm that is not positive; infinity clips nothing.
    """
    require_positive(max_norm=max_norm)
    gradients = [p.grad for p in parts if p.grad is not None]
    norm = math.sqrt(world.sum(sum(g.square().sum().item() for g in gradients)))
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


class ZeroOptimizer:
    """Stages 1 and 2: step a part of each parameter, and share the result.

    Args:
        model: equal in all processes, and stays whole.
        wire: to the others.
        stage: 1 keeps whole gradients until the step, 2 never holds them all.
        make: makes an optimizer of the parts, ``torch.optim.AdamW`` for instance.

    Raises:
        ValueError: another stage.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = ZeroOptimizer(model, Wire(World()), 2, torch.optim.AdamW)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> model.weight.grad is None, optimizer.parts[0].grad   # the part has it
    (True, tensor([1., 1.]))
    >>> optimizer.step()
    """

    def __init__(self, model: nn.Module, wire: Wire, stage: int, make: Callable):
        require_one_of((1, 2), stage=stage)
        self.wire, self.stage = wire, stage
        self.whole = [p for p in model.parameters() if p.requires_grad]
        self.parts = [nn.Parameter(part_of(p, wire)) for p in self.whole]
        self.optimizer = make(self.parts)
        if stage == 2:
            for p, part in zip(self.whole, self.parts, strict=True):
                p.register_post_accumulate_grad_hook(partial(self._reduce, part))

    def _reduce(self, part: nn.Parameter, whole: nn.Parameter) -> None:
        """Move a gradient, summed over processes, to the part; drop the whole."""
        total = self.wire.reduce_scatter(pad(whole.grad.flatten(), self.wire.size))
        part.grad = total if part.grad is None else part.grad + total
        whole.grad = None

    def reduce(self) -> None:
        """Move what gradients there are to the parts: at stage 2 there are none."""
        for p, part in zip(self.whole, self.parts, strict=True):
            if p.grad is not None:
                self._reduce(part, p)

    @torch.no_grad()
    def step(self) -> None:
        """Step the parts and put the weights together; gradients are gone then."""
        self.reduce()  # unless it was done, for the norm
        self.optimizer.step()
        for p, part in zip(self.whole, self.parts, strict=True):
            p.copy_(whole_of(part, p.shape, self.wire))
            part.grad = None


def shard_weights(model: nn.Module, wire: Wire) -> nn.Module:
    """Stage 3: keep a part of each parameter; put it together when it is used.

    Afterwards ``model.parameters()`` are the parts, for any optimizer that treats each
    number by itself, and ``layer.weight`` gathers: all processes must ask for it
    together. Autograd keeps a weight that it needs until the backward pass; within
    ``checkpointing`` a block drops it, and gathers again when it is computed again.

    Args:
        model: equal in all processes; changed in place.
        wire: to the others.

    Returns:
        the model.

    Differs from the paper: weights are gathered again together with activations, not
    without them.

    >>> shard_weights(nn.Linear(2, 1), Wire(World())).weight.shape
    torch.Size([1, 2])
    """
    shapes = {p: p.shape for p in model.parameters()}
    for p in shapes:
        p.data = part_of(p, wire)
    for module in list(model.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            # unsafe: without a trial run, in which processes would talk
            register_parametrization(module, name, _Whole(shapes[p], wire), unsafe=True)
    return model


class _Whole(nn.Module):
    def __init__(self, shape: torch.Size, wire: Wire):
        super().__init__()
        self.shape, self.wire = shape, wire

    def forward(self, part: Tensor) -> Tensor:
        return _Gather.apply(part, self.shape, self.wire)


class _Gather(torch.autograd.Function):
    """All-gather; its gradient is reduce-scatter."""

    @staticmethod
    def forward(ctx, part: Tensor, shape: torch.Size, wire: Wire) -> Tensor:
        ctx.wire = wire
        return whole_of(part, shape, wire)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return ctx.wire.reduce_scatter(pad(g.flatten(), ctx.wire.size)), None, None
