"""Everything that the next step depends on, in one file.

To resume as if nothing had happened, a run needs its weights, the optimizer's moments,
the number of steps done (schedule and data are functions of it) and the state of every
random generator. All go into one safetensors file: tensors by name, and the rest as
JSON in its header. One file means one atomic rename (``minillm.files``): a process
that is killed at any moment leaves the old checkpoint or the new one.

The file holds whole tensors, so a run may resume on another number of processes.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import differences, require
from minillm.files import load_tensors, save_tensors, shapes
from minillm.model import GPT, GPTConfig
from minillm.training.distributed import full, shard_like

FORMAT = "minillm checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        tensors: ``model.*``, ``optimizer.*`` and ``random.*``.
        step: optimizer steps done.
        model: the model's configuration.
        notes: what the trainer wants to find unchanged (its configuration, the data).
        random: states of Python's and numpy's generators.
    """

    tensors: dict[str, Tensor]
    step: int
    model: GPTConfig
    notes: dict
    random: dict


def save_checkpoint(
    path: str | Path, model: GPT, optimizers: list, step: int, notes: dict, write=True
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; replaced only when the new one is whole.
        model: the unwrapped model.
        optimizers: in the order in which they will be loaded.
        step: optimizer steps done.
        notes: plain values that ``load_checkpoint`` returns.
        write: False takes part in gathering slices but leaves the file to another
            process.

    Raises:
        DiskFullError: no room; the old checkpoint is untouched.
    """
    tensors = {f"model.{name}": full(t) for name, t in model.weights().items()}
    tensors |= _optimizer_tensors(model, optimizers)
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if not write:
        return
    numpy = np.random.get_state()  # noqa: NPY002 - the global generator
    parts = {"step": step, "model": asdict(model.config), "notes": notes}
    parts |= {"random": {"python": random.getstate(), "numpy": numpy}}
    header = {n: json.dumps(x, default=np.ndarray.tolist) for n, x in parts.items()}
    save_tensors(path, tensors, {"format": FORMAT} | header)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without applying it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt or was not written by ``save_checkpoint``.
    """
    remedy = "train first or correct the path: no whole minillm file is there"
    tensors, header = load_tensors(path, remedy)
    ours = header.get("format") == FORMAT
    require(ours, "path", str(path), f"a {FORMAT!r} file", remedy)
    try:
        parts = {n: json.loads(header[n]) for n in ("step", "model", "notes", "random")}
        parts["model"] = GPTConfig(**parts["model"])
        return Checkpoint(tensors, **parts)
    except (KeyError, TypeError, ValueError) as error:
        message = f"a {FORMAT!r} file with a complete header ({error!r})"
        require(False, "path", str(path), message, remedy)


@torch.no_grad()
def restore(checkpoint: Checkpoint, model: GPT, optimizers: list[Optimizer]) -> None:
    """Put model, optimizers and random generators into the state of a checkpoint.

    Raises:
        ValueError: the checkpoint belongs to another model or to other optimizers;
            nothing is changed then.
    """
    weights, found = model.weights(), _tensors_under(checkpoint, "model.")
    _require_same_model(checkpoint, model, found)
    moments = _moments(checkpoint, model, optimizers)
    for name, weight in weights.items():
        weight.copy_(shard_like(found[name].to(weight.device), weight))
    for optimizer in optimizers:
        optimizer.state.clear()
    for optimizer, w, entry, tensor in moments:
        tensor = tensor.to(w.device)
        optimizer.state[w][entry] = shard_like(tensor, w) if tensor.ndim else tensor
    _restore_random(checkpoint)


def _require_same_model(checkpoint: Checkpoint, model: GPT, found: dict) -> None:
    """Compare settings too: another n_head or norm_eps would fit the same tensors."""
    then, now = asdict(checkpoint.model), asdict(model.config)
    wrong = differences(then | shapes(found), now | shapes(model.weights()))
    same = f"of the same model; differs in (then, now) {[*wrong.items()][:3]}"
    remedy = "build the model from checkpoint.model"
    require(not wrong, "checkpoint", checkpoint.model, same, remedy)


def _moments(checkpoint: Checkpoint, model: GPT, optimizers: list[Optimizer]) -> list:
    """Find the owner of each optimizer tensor, before anything is changed.

    Returns:
        for each an optimizer, a parameter, the name of the moment, and its value.
    """
    named, moments = dict(model.named_parameters()), []
    remedy = "build the optimizers that wrote it, in the same order"
    for key, tensor in _tensors_under(checkpoint, "optimizer.").items():
        i, _, rest = key.partition(".")
        name, _, entry = rest.rpartition("/")
        groups = [g for o in optimizers[int(i) :][:1] for g in o.param_groups]
        known = any(named.get(name) is w for group in groups for w in group["params"])
        require(known, "checkpoint", key, "of these optimizers", remedy)
        moments.append((optimizers[int(i)], named[name], entry, tensor))
    return moments


def load_model(path: str | Path) -> GPT:
    """Build the model of a checkpoint, to use it rather than to train on.

    Raises:
        FileNotFoundError, ValueError: see ``load_checkpoint``.
    """
    checkpoint = load_checkpoint(path)
    weights = _tensors_under(checkpoint, "model.")
    model = GPT(checkpoint.model).to(weights["embed_tokens.weight"].dtype)
    if checkpoint.model.tied:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


def _optimizer_tensors(model: GPT, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"optimizer.{i}.{names[w]}/{entry}": full(torch.as_tensor(value))
        for i, optimizer in enumerate(optimizers)
        for w, state in optimizer.state.items()
        for entry, value in state.items()
    }


def _tensors_under(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    found = {n: t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _restore_random(checkpoint: Checkpoint) -> None:
    torch.set_rng_state(checkpoint.tensors["random.torch"])
    if "random.cuda" in checkpoint.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"])
    version, internal, gauss = checkpoint.random["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(checkpoint.random["numpy"]))  # noqa: NPY002
