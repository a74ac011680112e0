r"""Activation checkpointing: forget what the forward pass made, and make it again.

A backward pass needs what the forward pass saw, and so memory grows with depth. A
checkpoint keeps only the *input* of a span of blocks and computes the rest once more
when its turn comes. The price is one more forward pass,

.. math:: \frac{1 + 1 + 2}{1 + 2} = \frac{4}{3} \text{ of the operations,}

whatever the span; what is saved depends on it. With spans of k blocks, L / k inputs are
kept and k blocks exist in full at a time: k near the root of L is best where a block
keeps as much as its input, and k = 1 where it keeps many times as much, as here.

Two ways to measure: hooks on saved tensors tell *what* is kept, once; a memory tracker
tells the *peak*, in which there are also gradients, and blocks that were made again.

Source: Chen et al. 2016 (arXiv:1604.06174), sections 3 and 4.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillm.errors import require_count


class Span(nn.Module):
    """Blocks that keep only their input; called as one of them is."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *past: Any) -> Tensor:
        # The older way, re-entrant, needs an input with a gradient and knows no hooks.
        return checkpoint(self._run, x, *past, use_reentrant=False)

    def _run(self, x: Tensor, *past: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, *past)
        return x


@contextmanager
def checkpointing(model: nn.Module, every: int = 1) -> Iterator[None]:
    """Forward passes within keep only the input of every ``every``-th block.

    Args:
        model: with ``layers``; the same again afterwards. Backward passes may come
            later.
        every: blocks in a span.

    Raises:
        ValueError: no count.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    >>> with checkpointing(model):
    ...     model(torch.tensor([[1, 2]])).sum().backward()
    >>> model.layers[0].mlp.up_proj.weight.grad is None
    False
    """
    require_count(every=every)
    layers = model.layers
    starts = range(0, len(layers), every)
    model.layers = nn.ModuleList(Span(layers[i : i + every]) for i in starts)
    try:
        yield
    finally:
        model.layers = layers


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass.

    Each storage counts once, however many operations keep it or a view of it; what the
    model holds anyway (parameters, buffers, RoPE's table) does not count.

    Args:
        model: that ``run`` uses.
        run: the forward pass; it returns what holds the graph, such as the loss.

    >>> layer = nn.Linear(3, 2)
    >>> saved_bytes(layer, lambda: layer(torch.ones(5, 3)))   # its input: 15 floats
    60
    """
    held = [*model.parameters(), *model.buffers()]
    held += [t for m in model.modules() for t in vars(m).values() if torch.is_tensor(t)]
    own = {t.untyped_storage().data_ptr() for t in held}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # or an operation that keeps its result keeps itself

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = run()  # alive until all is counted: addresses are used again
    del graph
    return sum(kept.values())


def peak_bytes(run: Callable[[], Any], *held: nn.Module | torch.optim.Optimizer) -> int:
    """The most bytes that tensors took at one time while ``run`` ran, on the CPU.

    Args:
        run: a training step, for instance.
        held: models and optimizers that exist before it and count as well.

    PyTorch's ``MemTracker`` sees every tensor come and go; the operating system does
    not, because the allocator keeps what was freed.

    >>> peak_bytes(lambda: torch.ones(1000) + torch.ones(1000)) >= 3 * 4000
    True
    """
    # Imported here: it takes a second, and most readers never need it.
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(*held)
    with tracker:
        run()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
