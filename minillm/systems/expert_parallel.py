r"""Expert parallelism: experts stay where they are, and tokens travel.

With E experts on n processes, each holds E / n of them and its own share of the tokens.
Sort tokens by the process of their expert, exchange (all-to-all), compute, exchange
back, undo the sorting:

.. math:: y_i = E_{c_i}(x_i)

The adjoint of an all-to-all is the all-to-all back, so gradients find their way. With
balanced experts each exchange sends :math:`\frac{n-1}{n}` of a process's tokens; a
popular expert makes its process wait, and that is what balancing losses are for.

Source: Lepikhin et al. 2020 (GShard, arXiv:2006.16668), section 3.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require
from minillm.systems.wire import Wire


class _AllToAll(torch.autograd.Function):
    """Send so many rows to each process; the gradient goes the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, to: list[int], back: list[int], wire: Wire) -> Tensor:
        ctx.back, ctx.wire = back, wire
        return torch.cat(wire.all_to_all(x.split(to)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.cat(ctx.wire.all_to_all(g.split(ctx.back))), None, None, None


def expert_parallel(
    x: Float[Tensor, "N C"],
    choice: Int[Tensor, " N"],
    experts: Sequence[Callable[[Tensor], Tensor]],
    wire: Wire,
) -> Float[Tensor, "N C"]:
    """Apply to each token the expert that it chose, wherever that one lives.

    Args:
        x: this process's tokens; N may differ between processes, and be 0.
        choice: the expert of each, in 0..E - 1. For k experts a token, repeat the
            tokens and weigh the results.
        experts: of this process; equally many everywhere. Those of process r are
            r E / n and the following.
        wire: to the others.

    Returns:
        the results, in the order of x.

    Raises:
        ValueError: an expert that nobody has.

    >>> from minillm.training import World
    >>> double, negate = (lambda x: 2 * x), (lambda x: -x)
    >>> x, choice = torch.ones(3, 1), torch.tensor([1, 0, 1])
    >>> expert_parallel(x, choice, [double, negate], Wire(World())).flatten()
    tensor([-1.,  2., -1.])
    """
    here, E = len(experts), len(experts) * wire.size
    known = bool(((choice >= 0) & (choice < E)).all())
    require(known, "choice", choice.tolist(), f"in 0..{E - 1}", "route to one of them")
    owner = choice // max(here, 1)
    order = owner.argsort(stable=True)
    to = owner.bincount(minlength=wire.size).tolist()
    # Identities travel beside the tokens, 8 bytes each; libraries send counts.
    ids = wire.all_to_all(choice[order].split(to))
    back, ids = [len(part) for part in ids], torch.cat(ids) - wire.rank * here
    came = _AllToAll.apply(x[order], to, back, wire)
    y = torch.zeros_like(came)
    for e, expert in enumerate(experts):
        rows = (ids == e).nonzero()[:, 0]
        y = y.index_copy(0, rows, expert(came[rows]))  # an idle expert: gradient 0
    home = _AllToAll.apply(y, back, to, wire)
    return home[order.argsort()]
