r"""Data parallel training by hand: equal copies, different rows, one sum of gradients.

.. math:: g = \sum_r g_r, \qquad
          g_r = \nabla \, \frac{1}{N} \sum_{t \in \text{rows of } r} -\ln p(x_t)

N counts the targets of *all* processes. If each took the mean over its own and the
means were averaged, a token in a process with few targets would weigh more than others.

Gradients travel in buckets: many small tensors would each pay for a message, and one
large one could not start before the backward pass is over. Buckets are filled from the
last parameter to the first, as a backward pass makes gradients. PyTorch's DDP starts a
bucket while the pass goes on; here all is done afterwards, for reading.

Source: Li et al. 2020 (PyTorch Distributed), section 3.2.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.data.batches import Batch
from minillm.errors import require_positive
from minillm.systems.wire import Wire
from minillm.training.distributed import World
from minillm.training.losses import count_targets, next_token_loss


def backward_share(model: nn.Module, batch: Batch, world: World) -> float:
    """Add the gradient of this process's rows to the parameters.

    Args:
        model: takes tokens, gives logits.
        batch: the whole batch, the same in all processes.
        world: who shares it.

    Returns:
        the mean loss over all targets of the batch, in nats.

    Raises:
        ValueError: the rows cannot be shared equally.
    """
    mine = world.share(batch)
    loss = share_of_loss(model(mine.tokens), mine, count_targets(*batch))
    loss.backward()
    return world.sum(loss.item())


def share_of_loss(
    logits: Float[Tensor, "B T V"], batch: Batch, n: int
) -> Float[Tensor, ""]:
    """What these rows add to the mean over all n targets, here and elsewhere.

    >>> batch = Batch(torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool))
    >>> share_of_loss(torch.zeros(1, 3, 4), batch, n=4)   # two of four times ln 4
    tensor(0.6931)
    """
    here = count_targets(*batch)
    # Without a target there is no mean; but all must still take part in exchanges.
    mean = next_token_loss(logits, *batch) if here else 0 * logits.sum()
    return mean * (here / n)


def buckets(tensors: Sequence[Tensor], nbytes: float) -> Iterator[list[Tensor]]:
    """Group tensors, last first, into buckets that are full at ``nbytes``.

    >>> [len(bucket) for bucket in buckets([torch.zeros(2)] * 5, nbytes=16)]
    [2, 2, 1]
    """
    bucket: list[Tensor] = []
    for tensor in reversed(tensors):
        bucket.append(tensor)
        if sum(t.nbytes for t in bucket) >= nbytes:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


@torch.no_grad()
def all_reduce_gradients(model: nn.Module, wire: Wire, bucket_mb: float = 25.0) -> None:
    """Replace every gradient by its sum over all processes.

    Args:
        model: whose trainable parameters have a gradient, or not, in all processes.
        wire: to the others.
        bucket_mb: size of a bucket in units of 2^20 bytes.

    Raises:
        ValueError: a size that is not positive.
    """
    require_positive(bucket_mb=bucket_mb)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for bucket in buckets(gradients, bucket_mb * 2**20):
        total = wire.all_reduce(torch.cat([g.flatten() for g in bucket]))
        for gradient, part in zip(
            bucket, total.split([g.numel() for g in bucket]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
