r"""Collectives by hand, from one move: pass to the right, receive from the left.

Put n processes in a ring and cut a tensor of S bytes into n chunks.

- **Reduce-scatter**: chunk by chunk, add your own to what comes and pass it on. After
  n - 1 rounds each process holds one chunk, summed over all.
- **All-gather**: pass on what came. After n - 1 rounds everybody has all chunks.
- **All-reduce** is the one and then the other. Each process sends

.. math:: 2 \, \frac{n - 1}{n} \, S \quad \text{bytes,}

which hardly depends on n; and no algorithm needs less. If all sent their tensor to one
process and got the sum back, that one would send and receive (n - 1) S.

Every byte goes through ``Wire.exchange``, which counts it. NCCL and gloo do the same in
their own code (rings or trees); tests compare the results.

Source: Patarasuk & Yuan 2009, sections 3 and 4.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require
from minillm.training.distributed import World


class Wire:
    """The exchanges of one process with the others, and the bytes that it sent.

    Args:
        world: who talks; alone, every exchange is trivial.

    >>> wire = Wire(World())
    >>> wire.all_reduce(torch.ones(3)), wire.sent
    (tensor([1., 1., 1.]), 0)
    """

    def __init__(self, world: World):
        self.rank, self.size, self.sent = world.rank, world.size, 0

    def send(self, x: Tensor, to: int) -> dist.Work:
        """Begin to send; ``wait()`` for what is returned before x is changed."""
        self.sent += x.nbytes
        return dist.isend(x.contiguous(), to)

    def receive(self, like: Tensor, source: int) -> Tensor:
        """Wait for a tensor of the shape and type of ``like``."""
        got = torch.empty_like(like, requires_grad=False)
        dist.recv(got, source)
        return got

    def exchange(self, x: Tensor, by: int = 1, like: Tensor | None = None) -> Tensor:
        """Give x to the process ``by`` places to the right; return the left one's.

        Args:
            like: a tensor of the shape that comes, if it is not that of x.
        """
        sending = self.send(x, (self.rank + by) % self.size)
        source = (self.rank - by) % self.size
        got = self.receive(x if like is None else like, source)
        sending.wait()
        return got

    def reduce_scatter(
        self, x: Float[Tensor, " n*k"], combine: Callable = torch.add
    ) -> Float[Tensor, " k"]:
        """Combine over all processes; each keeps the chunk of its rank.

        Raises:
            ValueError: n does not divide the length.
        """
        n, remedy = self.size, "pad it, or choose another number of processes"
        require(len(x) % n == 0, "length", len(x), f"a multiple of {n}", remedy)
        chunks = x.view(n, -1)
        total = chunks[self.rank - 1]  # the one that ends its way at my left
        for step in range(2, n + 1):
            total = combine(self.exchange(total), chunks[(self.rank - step) % n])
        return total

    def all_gather(self, x: Float[Tensor, " k"]) -> Float[Tensor, " n*k"]:
        """Put the tensors of all processes side by side, by rank."""
        parts = [x]
        for _ in range(self.size - 1):
            parts.append(self.exchange(parts[-1]))  # of rank, rank - 1, ...
        return torch.cat([parts[self.rank - r] for r in range(self.size)])

    def all_reduce(self, x: Tensor, combine: Callable = torch.add) -> Tensor:
        """Combine a tensor of any shape over all processes; give it to all."""
        flat = pad(x.detach().flatten(), self.size)
        total = self.all_gather(self.reduce_scatter(flat, combine))
        return total[: x.numel()].view_as(x)

    def all_to_all(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send parts[r] to process r; return what each sent here.

        Parts may have unequal lengths. Lengths go first: 8 bytes to each of the others.
        """
        lengths = torch.tensor([len(part) for part in parts])
        got = list(parts)
        for by in range(1, self.size):
            to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
            length = self.exchange(lengths[to : to + 1], by)
            like = parts[to].new_empty(int(length), *parts[to].shape[1:])
            got[source] = self.exchange(parts[to], by, like)
        return got


def pad(x: Float[Tensor, " k"], n: int) -> Float[Tensor, " n*m"]:
    """Append zeros until the length is a multiple of n.

    >>> pad(torch.ones(3), 2)
    tensor([1., 1., 1., 0.])
    """
    return F.pad(x, (0, -len(x) % n))


def ring_bytes(kind: str, nbytes: int, n: int) -> float:
    r"""Bytes that each process sends for a tensor of ``nbytes`` in a ring of n.

    Args:
        kind: ``"all_reduce"``, ``"reduce_scatter"`` or ``"all_gather"`` (the whole
            tensor counts, not the chunk), or ``"all_to_all"`` with equal parts.

    >>> ring_bytes("all_reduce", 1000, n=4)
    1500.0
    """
    return (2 if kind == "all_reduce" else 1) * (n - 1) / n * nbytes
