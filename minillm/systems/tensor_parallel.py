r"""Tensor parallelism: every process computes its share of each layer.

Of two matrices in a row, cut the first by columns (outputs) and the second by rows
(inputs): what is between them, heads or hidden units, never has to be put together.

.. math:: y = \sum_r W^{down}_{:,r} \, \phi(W^{up}_{r,:} \, x)

Two operators around the pair do all the talking, and each is the other's adjoint:

- **enter**: nothing forward, all-reduce backward (everybody's share used x);
- **leave**: all-reduce forward (the sum above), nothing backward.

So a block has two all-reduces in each direction, of B T C numbers each. The vocabulary
is cut, too: each process has some rows of the embedding and of the head, and the loss
needs three numbers for each token (largest logit, sum, the target's), not all logits.

Source: Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053), section 3.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.errors import require
from minillm.model import GPT
from minillm.systems.wire import Wire
from minillm.training.losses import IGNORE, shift_targets


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, wire: Wire) -> Tensor:
        ctx.wire = wire
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return ctx.wire.all_reduce(g), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, wire: Wire) -> Tensor:
        return wire.all_reduce(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g, None


class Enter(nn.Module):
    """Where a stream that all have goes into layers that are cut."""

    def __init__(self, wire: Wire):
        super().__init__()
        self.wire = wire

    def forward(self, x: Tensor) -> Tensor:
        return _Enter.apply(x, self.wire)


class Leave(Enter):
    """Where the shares of all are summed up."""

    def forward(self, x: Tensor) -> Tensor:
        return _Leave.apply(x, self.wire)


def share_of(weight: Tensor, wire: Wire, dim: int) -> nn.Parameter:
    """This process's rows (``dim`` 0) or columns (1) of a weight.

    Raises:
        ValueError: they cannot be shared equally.

    >>> from minillm.training import World
    >>> share_of(torch.arange(4.0).view(2, 2), Wire(World(1, 2)), dim=1).flatten()
    tensor([1., 3.], grad_fn=...)
    """
    n, size = wire.size, weight.shape[dim]
    remedy = "choose a number of processes that divides heads, hidden units and tokens"
    require(size % n == 0, "size", size, f"a multiple of {n} processes", remedy)
    return nn.Parameter(weight.detach().chunk(n, dim)[wire.rank].clone())


class VocabularyShare(nn.Module):
    """Some rows of an embedding; tokens of other processes add zero to the sum."""

    def __init__(self, weight: nn.Parameter, wire: Wire):
        super().__init__()
        self.weight, self.leave = weight, Leave(wire)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        row, mine = own_rows(tokens, len(self.weight), self.leave.wire.rank)
        return self.leave(self.weight[row] * mine[..., None])


def own_rows(ids: Tensor, rows: int, rank: int) -> tuple[Tensor, Tensor]:
    """Row of each id in this process's share (0 if it has none), and if it has one.

    >>> own_rows(torch.tensor([1, 5]), rows=4, rank=1)
    (tensor([0, 1]), tensor([False,  True]))
    """
    row = ids - rank * rows
    mine = (row >= 0) & (row < rows)
    return row * mine, mine


def cut_model(model: GPT, wire: Wire) -> GPT:
    """Keep this process's share of every matrix; ``forward`` gives its logits.

    Args:
        model: equal in all processes; changed in place. Norms stay whole.
        wire: to the others.

    Returns:
        the model: it returns logits of V / n tokens, for ``vocabulary_loss``.

    Raises:
        ValueError: n does not divide key-value heads, hidden units or vocabulary.
    """
    config, n = model.config, wire.size
    sizes = (config.n_kv_head, config.n_hidden, config.vocab_size)
    fits = all(size % n == 0 for size in sizes)
    must_be = f"a divisor of n_kv_head, n_hidden and vocab_size = {sizes}"
    require(fits, "processes", n, must_be, "start another number of them")
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        first = (attention.q_proj, attention.k_proj, attention.v_proj)
        for layer in (*first, mlp.gate_proj, mlp.up_proj):
            layer.weight = share_of(layer.weight, wire, dim=0)
        for layer in (attention.o_proj, mlp.down_proj):
            layer.weight = share_of(layer.weight, wire, dim=1)
        # One exchange for all that read a norm, not one for each of its readers.
        block.input_layernorm = nn.Sequential(block.input_layernorm, Enter(wire))
        norm = nn.Sequential(block.post_attention_layernorm, Enter(wire))
        block.post_attention_layernorm = norm
        attention.o_proj = nn.Sequential(attention.o_proj, Leave(wire))
        mlp.down_proj = nn.Sequential(mlp.down_proj, Leave(wire))
    model.norm = nn.Sequential(model.norm, Enter(wire))
    table = share_of(model.embed_tokens.weight, wire, dim=0)
    head = table if config.tied else share_of(model.lm_head.weight, wire, dim=0)
    model.embed_tokens, model.lm_head.weight = VocabularyShare(table, wire), head
    return model


def vocabulary_loss(
    logits: Float[Tensor, "B T V/n"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None,
    wire: Wire,
) -> Float[Tensor, ""]:
    r"""``next_token_loss`` from shares of the logits, which are never put together.

    .. math:: -\ln p = m + \ln \sum_r \sum_{v \in r} e^{z_v - m} - z_{target}

    with m the largest logit of all processes: without it the exponential overflows.

    Raises:
        ValueError: no target.

    >>> from minillm.training import World
    >>> vocabulary_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), None,
    ...                 Wire(World()))   # ln 4
    tensor(1.3863)
    """
    targets = shift_targets(tokens, mask)
    scored, n = targets != IGNORE, int((targets != IGNORE).sum())
    require(n > 0, "targets", n, "at least 1", "give each batch a row with a target")
    largest = wire.all_reduce(logits.detach().amax(-1), torch.maximum)
    row, mine = own_rows(targets, logits.shape[-1], wire.rank)
    target = logits.gather(-1, row[..., None])[..., 0] * mine
    exponentials = (logits - largest[..., None]).exp().sum(-1)
    total, target = _Leave.apply(torch.stack([exponentials, target]), wire)
    return ((largest + total.log() - target) * scored).sum() / n
