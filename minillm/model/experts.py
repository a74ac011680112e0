"""Three ways to let each expert work on its own tokens; all give the same sum.

``masked`` is the definition: every expert reads every token, and a mask keeps what was
asked for. It computes E / k times too much. ``buffered`` copies tokens into one buffer
of fixed size for each expert, so that no shape depends on the data: what accelerators
and networks want, at the price of padding. ``grouped`` sorts the assignments by expert;
each expert reads a contiguous part, nothing is padded, and nothing is computed twice.

Experts are ordinary layers, so optimizers, adapters and quantization see matrices.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.errors import require, require_count
from minillm.model.routing import Routing, places


def masked(
    x: Float[Tensor, "N C"], routing: Routing, experts: Sequence[nn.Module]
) -> Float[Tensor, "N C"]:
    """Every expert on every token; the definition, to compare with.

    >>> from minillm.model.routing import choose_experts
    >>> routing = choose_experts(torch.tensor([[0.75, 0.25]]), k=2)
    >>> masked(torch.tensor([[8.0]]), routing, [nn.Identity(), torch.neg])
    tensor([[4.]])
    """
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        mine = routing.experts == e
        gate = x.new_zeros(len(x)).index_add(
            0, routing.tokens, (routing.gates * mine).to(x.dtype)
        )
        y = y + gate[:, None] * expert(x)
    return y


def buffered(
    x: Float[Tensor, "N C"],
    routing: Routing,
    experts: Sequence[nn.Module],
    size: int,
) -> Float[Tensor, "N C"]:
    """Each expert on a buffer of ``size`` tokens; empty places hold zeros.

    No shape depends on who chose whom, so it can be compiled, and sent to other
    machines. The mask of GShard's einsum, (N, E, size), would be larger than x; its
    positions are enough.

    Raises:
        ValueError: a queue longer than its buffer; see ``drop_overflow``.

    Source: Lepikhin et al. 2020 (GShard), algorithm 1.
    """
    require_count(size=size)
    longest, remedy = int(routing.counts.max()), "drop_overflow first"
    require(longest <= size, "size", size, f"at least {longest}", remedy)
    slots = routing.experts * size + places(routing)
    buffers = x.new_zeros(len(experts) * size, x.shape[1])
    buffers = buffers.index_copy(0, slots, x[routing.tokens])
    parts = zip(experts, buffers.split(size), strict=True)
    answers = torch.cat([expert(part) for expert, part in parts])[slots]
    return _add_up(x, routing, answers)


def grouped(
    x: Float[Tensor, "N C"], routing: Routing, experts: Sequence[nn.Module]
) -> Float[Tensor, "N C"]:
    """Each expert on its own tokens only, which were sorted to lie side by side.

    >>> from minillm.model.routing import choose_experts
    >>> routing = choose_experts(torch.tensor([[0.75, 0.25]]), k=2)
    >>> grouped(torch.tensor([[8.0]]), routing, [nn.Identity(), torch.neg])
    tensor([[4.]])

    Source: Gale et al. 2022 (MegaBlocks), section 4. Differs from the paper: a loop
    over experts stands where they have one block-sparse product. torch's grouped_mm,
    one call, takes no float64, and one block of all weights is no matrix for Muon.
    """
    order = routing.experts.argsort(stable=True)
    routing, counts = routing.pick(order), routing.counts.tolist()
    parts = zip(experts, x.index_select(0, routing.tokens).split(counts), strict=True)
    # An expert without tokens is asked all the same: its gradient is 0 and not None.
    return _add_up(x, routing, torch.cat([expert(part) for expert, part in parts]))


def _add_up(x: Tensor, routing: Routing, answers: Float[Tensor, "A C"]) -> Tensor:
    """For each token the sum of its experts' answers; zero if nobody was asked."""
    weighed = routing.gates[:, None].to(answers.dtype) * answers
    return torch.zeros_like(x).index_add(0, routing.tokens, weighed.to(x.dtype))
