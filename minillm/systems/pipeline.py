"""Pipeline parallelism: each process holds some blocks, and batches pass through.

Forward, a stage receives the residual stream from the stage before it, computes, and
sends the result on; backward, it receives that result's gradient and sends on its
input's. Only B T C numbers cross each border in each direction, where tensor
parallelism sums as many twice in every block; the price is the bubble (``schedules``).

The order of actions alone decides what is in memory and who waits; the code that runs
it is the same for any schedule.

Source: Huang et al. 2019 (GPipe), section 2; Narayanan et al. 2021, section 2.2.
"""

from torch import Tensor, nn

from minillm.data.batches import Batch
from minillm.errors import require, require_count
from minillm.model import GPT
from minillm.systems.data_parallel import share_of_loss
from minillm.systems.schedules import Action
from minillm.systems.wire import Wire
from minillm.training.losses import count_targets


class Stage(nn.Module):
    """Part ``wire.rank`` of a model: its blocks, and at the ends embedding and head.

    Args:
        model: whose layers it takes.
        wire: the stages; one process each.

    Raises:
        ValueError: layers that cannot be shared equally, a tied head (its embedding
            would live in two processes).
    """

    def __init__(self, model: GPT, wire: Wire):
        super().__init__()
        n, p = len(model.layers), wire.size
        remedy = "choose another number of processes or layers"
        require(n % p == 0, "n_layer", n, f"a multiple of {p} stages", remedy)
        ok, remedy = not model.config.tied, "build the model with tied=False"
        require(ok or p == 1, "tied", True, "False in a pipeline", remedy)
        self.wire, self.config, self.rotations = wire, model.config, model.rotations
        self.layers = model.layers[wire.rank * n // p : (wire.rank + 1) * n // p]
        if self.first:
            self.embed_tokens = model.embed_tokens
        if self.last:
            self.norm, self.lm_head = model.norm, model.lm_head

    @property
    def first(self) -> bool:
        """Whether it reads tokens."""
        return self.wire.rank == 0

    @property
    def last(self) -> bool:
        """Whether it gives logits."""
        return self.wire.rank == self.wire.size - 1

    def forward(self, x: Tensor) -> Tensor:
        """From tokens or the stream of the stage before to the stream or logits."""
        if self.first:
            x = self.embed_tokens(x)
        for block in self.layers:
            x = block(x, self.rotations[: x.shape[1]])
        return self.lm_head(self.norm(x)) if self.last else x


def run_schedule(stage: Stage, actions: list[Action], batch: Batch, m: int) -> float:
    """Add the batch's gradient to the stage's parameters.

    Args:
        stage: of this process.
        actions: of this stage, from a schedule with m micro-batches.
        batch: the whole batch, the same in all processes.
        m: micro-batches.

    Returns:
        the mean loss over all targets, in nats, in the last stage; 0 elsewhere.

    Raises:
        ValueError: rows that cannot be shared equally.
    """
    require_count(m=m)
    B, remedy = len(batch.tokens), "choose another number of micro-batches"
    require(B % m == 0, "B", B, f"a multiple of {m} micro-batches", remedy)
    wire, n, total = stage.wire, count_targets(*batch), 0.0
    parts = [Batch(*part) for part in zip(*(x.chunk(m) for x in batch), strict=True)]
    shape = (B // m, batch.tokens.shape[1], stage.config.n_embd)
    like = next(stage.parameters()).new_empty(shape)
    held, sent = {}, []
    for kind, i in actions:
        if kind == "F":
            x = parts[i].tokens
            if not stage.first:
                x = wire.receive(like, wire.rank - 1).requires_grad_()
            y = stage(x)
            if stage.last:
                y = share_of_loss(y, parts[i], n)
                total += y.item()
            else:
                sent.append(wire.send(y.detach(), wire.rank + 1))
            held[i] = x, y
        else:
            x, y = held.pop(i)
            y.backward(None if stage.last else wire.receive(like, wire.rank + 1))
            if not stage.first:
                sent.append(wire.send(x.grad, wire.rank - 1))
    for sending in sent:  # none waits before: two stages may send at the same time
        sending.wait()
    return total
