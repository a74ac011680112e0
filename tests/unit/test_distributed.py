"""Two processes equal one: the same script under torchrun, plain, and in between.

Each test starts real processes (gloo, on the processor), because that is where training
in parallel goes wrong. To save starts, one start trains several cases.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minillm.data.batches import Batch
from minillm.training import World, join_world, load_checkpoint
from minillm.training.distributed import full, parallelize, shard_like

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="torchrun with gloo is tried on Linux only"
)

SCRIPT = '''
"""Train every case named on the command line; the same in one process and in many."""
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from minillm.data.batches import Batch
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer, TrainingInterrupted, join_world
from minillm.training.distributed import leave_world

class Ragged:
    """Rows with very unequal numbers of targets; rank 1 may get none at all."""
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        tokens = torch.randint(17, (4, 9), generator=generator)
        lengths = torch.tensor([[9, 2, 5, 3], [4, 1, 7, 1]][i % 2])
        return Batch(tokens, torch.arange(9) < lengths[:, None])

world = join_world()
folder, stop = sys.argv[1], int(sys.argv[2])
for case in sys.argv[3:]:
    parallel, optimizer, tied = case.split("-")
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context": 16}
    model = GPT(GPTConfig(17, **size, tied=tied == "tied")).double()
    optimizer = optimizer.replace("hand", "adamw-by-hand")
    config = TrainConfig(6, optimizer, lr=0.01, warmup=2, clip=0.5, accumulate=2,
                         parallel=parallel, save_every=100)

    def interrupt(trainer):
        if trainer.step == stop and world.rank == world.size - 1:
            signal.raise_signal(signal.SIGINT)  # only one of them hears it

    trainer = Trainer(model, Ragged(), config, f"{folder}/{case}", world=world,
                      on_step=interrupt, progress=False)
    try:
        trainer.fit()
    except TrainingInterrupted as stopped:
        print(stopped, flush=True)
leave_world()
'''
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CASES = [
    f"{parallel}-{rest}"
    for parallel in ("ddp", "fsdp")
    for rest in ("muon-tied", "adamw-untied", "hand-tied")
]
STATES = ("model.", "optimizer.", "random.")
# float64; processes only add in another order. What is left is 1e-16 times a few
# hundred terms, amplified by Muon's polynomial (3.4 a round) and Adam's ratio of small
# numbers. A mean of means, a missing gradient or a doubled one is off by percents.
CLOSE = {"rtol": 1e-8, "atol": 1e-11}


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def launch(launcher: list, script: Path, *arguments) -> str:
    """Run a script to its end; fail with all that it said if it fails."""
    command = [sys.executable, *launcher, script, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, env=ENV
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ENV = {name: value for name, value in os.environ.items() if name != "RANK"} | {
    "OMP_NUM_THREADS": "1"
}


@pytest.fixture(scope="module")
def alone(script, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch([], script, folder, -1, *CASES)
    return folder


def assert_same_run(ours: Path, theirs: Path, case: str) -> None:
    ours, theirs = (
        load_checkpoint(f / case / "checkpoint.safetensors") for f in (ours, theirs)
    )
    assert ours.step == theirs.step == 6
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert name.startswith(STATES)
        torch.testing.assert_close(ours.tensors[name], tensor, **CLOSE)


def losses(folder: Path, case: str) -> list[tuple[float, float, int]]:
    lines = (folder / case / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [(r["loss"], r["grad_norm"], r["tokens"]) for r in records]


def assert_same_losses(ours: Path, theirs: Path, case: str) -> None:
    mine, others = losses(ours, case), losses(theirs, case)
    assert len(mine) == 6
    for a, b in zip(mine, others, strict=True):
        assert a == pytest.approx(b, rel=1e-8)


@pytest.fixture(scope="module")
def together(script, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    launch(TORCHRUN, script, folder, -1, *CASES)
    return folder


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(alone, together, case):
    assert_same_losses(together, alone, case)
    assert_same_run(together, alone, case)


@on_linux
@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_processes(script, alone, tmp_path):
    # One process in six hears Ctrl-C, all stop after the same step, and what they
    # saved goes on alone; and the other way round.
    cases = ["fsdp-muon-tied", "fsdp-adamw-untied", "ddp-hand-tied"]
    first, then = tmp_path / "2 then 1", tmp_path / "1 then 2"
    for folder, launchers in ((first, (TORCHRUN, [])), (then, ([], TORCHRUN))):
        out = launch(launchers[0], script, folder, 3, *cases)
        assert "stopped after step 3 of 6" in out
        for case in cases:
            path = folder / case / "checkpoint.safetensors"
            assert load_checkpoint(path).step == 3
        launch(launchers[1], script, folder, -1, *cases)
        for case in cases:
            assert_same_losses(folder, alone, case)
            assert_same_run(folder, alone, case)
        assert not list(folder.glob("*/.*.tmp"))


DYING = """
import os, sys, time
import torch
from minillm.data.batches import Windows
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer, join_world
world = join_world()

def die(trainer):
    open(f"{sys.argv[1]}/{os.getpid()}.pid", "w").close()
    if trainer.step == 2 and world.rank == 1:
        os._exit(3)  # no exception, no goodbye

windows = Windows(torch.arange(200) % 17, T=9, B=4)
model = GPT(GPTConfig(17, n_layer=1, n_head=2, n_embd=16, context=16))
Trainer(model, windows, TrainConfig(10_000), world=world, on_step=die,
        progress=False).fit()
"""


@on_linux
@pytest.mark.slow
def test_a_worker_that_dies_does_not_leave_the_others_waiting(tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    command = [sys.executable, *TORCHRUN, str(script), str(tmp_path)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode != 0
    assert time.monotonic() - start < 50
    pids = [path.stem for path in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# --- without other processes --------------------------------------------------------


def test_alone_everything_is_as_it_was():
    world = World()
    layer = torch.nn.Linear(2, 2)
    for strategy in ("ddp", "fsdp"):
        assert parallelize(layer, strategy, world) is layer
    assert world.sum(2.5) == 2.5
    batch = Batch(torch.arange(6).view(3, 2), torch.ones(3, 2).bool())
    assert world.share(batch).tokens.equal(batch.tokens)
    assert full(layer.weight) is layer.weight
    assert shard_like(layer.weight, layer.bias) is layer.weight


def test_without_torchrun_the_world_is_this_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert join_world() == World(0, 1, "cpu")


def test_each_process_takes_its_rows_and_together_they_take_all():
    batch = Batch(torch.arange(12).view(6, 2), torch.ones(6, 2).bool())
    parts = [World(rank, 3).share(batch).tokens for rank in range(3)]
    assert torch.cat(parts)[:, 0].sort().values.tolist() == [0, 2, 4, 6, 8, 10]
    assert {len(part) for part in parts} == {2}
    with pytest.raises(ValueError, match="B must be a multiple of 4, got 6"):
        World(0, 4).share(batch)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"parallel must be one of .*'ddp'"):
        parallelize(torch.nn.Linear(1, 1), "zero", World())
