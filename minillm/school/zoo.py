"""The zoo: trained models that are there when a notebook asks for them.

``load("base")`` returns a model that took a minute to train. The first call trains it,
all later ones read a file from the cache (``MINILLM_CACHE``, or the user's cache
folder). The file's name holds a key of the recipe's settings and of all code behind it,
so a model is never older than the code that it is shown with.

Several notebooks may ask at once. One trains and the others wait for its file, behind a
lock of the operating system: it vanishes with the process that holds it, however that
ends, so no lock is ever left behind. Whether the model was trained now or read, the
caller's random numbers go on the same. A file holds a hash of its tensors; one that is
damaged is said to be, and made again.

    minillm zoo            what there is, and what is already trained
    minillm zoo base       train it now
    minillm zoo --all      train what is missing
"""

import hashlib
import inspect
import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from minillm.alignment.reward_model import RewardModel
from minillm.data import Tokenizer
from minillm.errors import require_one_of
from minillm.evaluation.floor import KnownText
from minillm.files import load_tensors, save_tensors
from minillm.model import GPT, GPTConfig
from minillm.school.code_key import code_key
from minillm.school.folders import cache_folder
from minillm.school.recipes.arithmetic import Arithmetic
from minillm.school.recipes.base import Base
from minillm.school.recipes.reward import Reward
from minillm.school.recipes.sft import Sft
from minillm.world import World, WorldConfig

RECIPES = {"base": Base(), "sft": Sft(), "reward": Reward(), "arithmetic": Arithmetic()}
SEED = "MINILLM_ZOO_SEED"  # authors set it, to see which outputs hang on the seed


@dataclass(frozen=True, eq=False)
class ZooModel:
    """A trained model and what is needed to ask it something.

    Args:
        name: of its recipe.
        model: ready for use, that is, in evaluation mode; a copy for the caller alone.
        tokenizer: its own.
        config: of the world that it has read about.
    """

    name: str
    model: GPT | RewardModel
    tokenizer: Tokenizer
    config: WorldConfig

    @cached_property
    def world(self) -> World:
        """The world that it has read about."""
        return World(self.config)

    def known(self, n: int = 500, stream: str = "test") -> KnownText:
        """Documents that it has not read, with the true price of each token."""
        return KnownText.of(self.world.documents(n, stream), self.tokenizer)


def load(recipe: str | Any, progress: bool = True, **changes) -> ZooModel:
    """Return a trained model; train it first if the cache has none.

    Args:
        recipe: a name from ``RECIPES``, or a recipe itself.
        progress: show bars while it is trained.
        changes: settings of the recipe to be replaced, for instance ``seed=1``.

    Raises:
        ValueError: no such recipe, or settings that no training allows.
        TypeError: a setting that the recipe does not have.
    """
    recipe = _recipe(recipe, changes)
    path = model_file(recipe)
    with torch.random.fork_rng(devices=[]):  # the caller's draws stay what they were
        if found := _read(path, recipe):
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, progress):  # once it is ours, another may have been faster
            return _read(path, recipe) or _train(path, recipe, progress)


def model_file(recipe: Any) -> Path:
    """Where the cache keeps the model of a recipe, if it has one.

    >>> model_file(RECIPES["base"]).suffix
    '.safetensors'
    """
    settings = json.dumps(asdict(recipe), sort_keys=True)
    key = settings + code_key(inspect.getfile(type(recipe)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_folder() / "zoo" / f"{_name(recipe)}-{digest}.safetensors"


def main(names: list[str], train_all: bool = False) -> None:
    """``minillm zoo``: train what is named, or say what there is."""
    for name in RECIPES if train_all else names:
        load(name)
    for name, recipe in RECIPES.items():
        path = model_file(_recipe(name, {}))
        about = inspect.getdoc(inspect.getmodule(recipe)).splitlines()[0]
        print(f"{name:10} {about}")
        print(f"{'':10} {path if path.is_file() else 'not trained yet'}")


def _recipe(recipe: str | Any, changes: dict) -> Any:
    if isinstance(recipe, str):
        require_one_of(RECIPES, recipe=recipe)
        recipe = RECIPES[recipe]
        if SEED in os.environ:
            changes = {"seed": int(os.environ[SEED])} | changes
    return replace(recipe, **changes)


def _name(recipe: Any) -> str:
    return type(recipe).__name__.lower()


def _lock(path: Path, progress: bool) -> AbstractContextManager:
    """Take the lock; say so if that means to wait for another process."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print("Another process is training this model; waiting.", file=sys.stderr)
        return lock.acquire()


def _train(path: Path, recipe: Any, progress: bool) -> ZooModel:
    """Train under the lock; a file that is there by now could not be read."""
    if path.is_file():
        print(f"{path} is damaged; it is made again.", file=sys.stderr)
    if progress:
        words = f"Training the model {_name(recipe)!r}; later calls find it ready."
        print(words, file=sys.stderr)
    model, tokenizer = recipe.train(load, progress)
    tensors = {f"model.{name}": w for name, w in model.weights().items()}
    tensors["merges"] = torch.tensor(tokenizer.merges).reshape(-1, 2)
    header = {
        "model": json.dumps(asdict(model.config)),
        "special": json.dumps(tokenizer.special_names),
        "sha256": _digest(tensors),
    }
    save_tensors(path, tensors, header)
    return ZooModel(_name(recipe), model.eval(), tokenizer, recipe.world)


def _read(path: Path, recipe: Any) -> ZooModel | None:
    """The model that a file holds; None if there is none, or a damaged one."""
    try:
        tensors, header = load_tensors(path, "train it")
    except (FileNotFoundError, ValueError):
        return None
    if header.get("sha256") != _digest(tensors):
        return None
    merges = tuple(map(tuple, tensors.pop("merges").tolist()))
    tokenizer = Tokenizer(merges, tuple(json.loads(header["special"])))
    weights = {name.removeprefix("model."): w for name, w in tensors.items()}
    config = GPTConfig(**json.loads(header["model"]))
    blank = getattr(recipe, "blank", lambda config, tokenizer: GPT(config))
    model = blank(config, tokenizer)
    model.load_state_dict(weights, strict=not config.tied)  # a tied head stands in once
    return ZooModel(_name(recipe), model.eval(), tokenizer, recipe.world)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
