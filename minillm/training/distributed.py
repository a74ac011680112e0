"""One script, one process or many: what a trainer needs to know of the others.

Under ``torchrun`` every process runs the same script and learns from its environment
who it is. Data parallel training is then three rules: each process takes its share of
the rows, gradients are summed over processes, and every mean is taken over the tokens
of all. The engines are PyTorch's: DDP keeps whole copies of the model, FSDP2 keeps a
slice of each tensor in each process.
"""

import os
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm.data.batches import Batch
from minillm.errors import require, require_one_of

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Args:
        rank: the number of this one.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, batch: Batch) -> Batch:
        """Take this process's rows of a batch.

        Raises:
            ValueError: the rows cannot be shared equally.
        """
        B, remedy = len(batch.tokens), "choose a multiple of the number of processes"
        require(B % self.size == 0, "B", B, f"a multiple of {self.size}", remedy)
        return Batch(*(part[self.rank :: self.size].to(self.device) for part in batch))

    def sum(self, value: float) -> float:
        """Add up a number over all processes; all must call this together."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()


def join_world(device: str = "cpu") -> World:
    """Join the processes that ``torchrun`` started; alone, be a world of one.

    Args:
        device: ``"cpu"`` (gloo) or ``"cuda"`` (NCCL).
    """
    if "RANK" not in os.environ:
        return World(device=device)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave_world() -> None:
    """End this process together with the others; alone, do nothing.

    For the last line of a script. It skips the interpreter's clean-up, because gloo's
    threads now and then abort it, after all work is done and written.

    >>> leave_world()
    """
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def parallelize(model: nn.Module, strategy: str, world: World) -> nn.Module:
    """Wrap a model for data parallel training; alone, return it as it is.

    Args:
        model: on this process's device, equal in all processes; FSDP2 changes it.
        strategy: ``"ddp"`` or ``"fsdp"``.
        world: who trains together.

    Raises:
        ValueError: an unknown strategy.
    """
    require_one_of(STRATEGIES, parallel=strategy)
    if world.size == 1:
        return model
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    # Imported here: the engine takes seconds to load and most readers never need it.
    from torch.distributed.fsdp import fully_shard

    for block in model.layers:
        fully_shard(block)  # gathered when its turn comes, freed after it
    return fully_shard(model)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 keeps in slices; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor, known to every process, the way that ``like`` is cut."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)
