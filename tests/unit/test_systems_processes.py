"""Systems with processes: n of them equal one, and say no more than theory allows.

Each launch runs all cases, because starting processes is what takes time. A case
compares with one process, which every worker plays as well, and counts bytes.
"""

import copy
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from minillm.data.batches import Batch
from minillm.model import GPT, GPTConfig
from minillm.systems import (
    Bytes,
    Stage,
    Wire,
    WorkerFailed,
    ZeroOptimizer,
    all_reduce_gradients,
    backward_share,
    checkpointing,
    clip_parts,
    cut_model,
    expert_parallel,
    gpipe,
    launch,
    model_states,
    one_f_one_b,
    ring_bytes,
    run_schedule,
    saved_bytes,
    shard_weights,
    vocabulary_loss,
)
from minillm.systems.data_parallel import share_of_loss
from minillm.training import World, clip_gradients, next_token_loss
from minillm.training.losses import count_targets

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo is tried on Linux only"),
    pytest.mark.slow,
]

B, T = 6, 7
DOUBLE = Bytes(8, 8, 16)  # float64 throughout
SIZES = {"n_head": 12, "n_kv_head": 6, "n_embd": 24, "n_hidden": 36}
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
# float64 in another order: 1e-16 times some hundred terms. Adam divides by the root of
# small squares, which enlarges what is left after two steps.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def model_and_batch(L: int, tied: bool = True) -> tuple[GPT, Batch]:
    torch.manual_seed(1)
    model = GPT(GPTConfig(30, n_layer=L, **SIZES, tied=tied)).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)  # so that attention and gates are at work
    lengths = torch.tensor([7, 1, 5, 2, 1, 3])  # of three processes, one has no target
    mask = torch.arange(T) < lengths[:, None]
    return model, Batch(torch.randint(30, (B, T)), mask)


def one_process(L: int, tied: bool = True, steps: int = 2) -> dict[str, torch.Tensor]:
    """Weights after some clipped steps of one process, or gradients without steps."""
    model, batch = model_and_batch(L, tied)
    optimizer = ADAMW(model.parameters())
    for _ in range(max(steps, 1)):
        optimizer.zero_grad()
        next_token_loss(model(batch.tokens), *batch).backward()
        if steps:
            clip_gradients(model.parameters(), 0.5)
            optimizer.step()
    return {n: p.detach() if steps else p.grad for n, p in model.named_parameters()}


def assert_all_close(ours: dict, theirs: dict) -> None:
    assert ours.keys() <= theirs.keys() and ours
    for name, tensor in ours.items():
        message = partial("{1}: {0}".format, name)
        torch.testing.assert_close(tensor, theirs[name], msg=message, **CLOSE)


# --- cases: each runs in every process ---------------------------------------------


def ring(world: World) -> None:
    for size in (0, 1, 7, 12):
        x = torch.randn(size, dtype=torch.float64) + world.rank
        wire, total, largest = Wire(world), x.clone(), x.clone()
        dist.all_reduce(total)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        torch.testing.assert_close(wire.all_reduce(x), total, **CLOSE)
        padded = -(-size // world.size) * world.size * 8
        assert wire.sent == ring_bytes("all_reduce", padded, world.size)
        assert wire.all_reduce(x, torch.maximum).equal(largest)
    x, wire = torch.arange(12.0) * (world.rank + 1), Wire(world)
    assert x.equal(torch.arange(12.0) * (world.rank + 1))  # nothing was written to it
    mine = wire.reduce_scatter(x)
    assert wire.sent == ring_bytes("reduce_scatter", x.nbytes, world.size)
    total = torch.arange(12.0) * sum(range(1, world.size + 1))
    assert mine.equal(total.chunk(world.size)[world.rank])
    assert wire.all_gather(mine).equal(total)
    sent = wire.sent
    parts = [torch.full((world.rank * r, 2), world.rank) for r in range(world.size)]
    got = wire.all_to_all(parts)
    for r, part in enumerate(got):
        assert part.equal(torch.full((world.rank * r, 2), r))
    others = sum(p.nbytes for r, p in enumerate(parts) if r != world.rank)
    assert wire.sent - sent == others + 8 * (world.size - 1)


def data_parallel(world: World, bucket_mb: float) -> None:
    (model, batch), wire = model_and_batch(world.size), Wire(world)
    optimizer = ADAMW(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        theirs = engine_gradients(model, batch, world)
        expected = next_token_loss(model(batch.tokens), *batch).item()
        assert backward_share(model, batch, world) == pytest.approx(expected, 1e-12)
        sent = wire.sent
        all_reduce_gradients(model, wire, bucket_mb)
        size = sum(p.nbytes for p in model.parameters())
        assert wire.sent - sent == ring_bytes("all_reduce", size, world.size)
        assert_all_close({n: p.grad for n, p in model.named_parameters()}, theirs)
        clip_gradients(model.parameters(), 0.5)
        optimizer.step()
    assert_all_close(dict(model.named_parameters()), one_process(world.size))


def engine_gradients(model: GPT, batch: Batch, world: World) -> dict:
    """The gradients of PyTorch's DDP, which averages where we add up."""
    twin = copy.deepcopy(model)
    mine, n = world.share(batch), count_targets(*batch)
    engine = nn.parallel.DistributedDataParallel(twin)  # must outlive the backward pass
    (share_of_loss(engine(mine.tokens), mine, n) * world.size).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def zero(world: World, stage: int) -> None:
    (model, batch), wire = model_and_batch(world.size), Wire(world)
    optimizer = ZeroOptimizer(model, wire, stage, ADAMW)
    for _ in range(2):
        sent = wire.sent
        backward_share(model, batch, world)
        held = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        held += sum(p.grad.nbytes for p in optimizer.parts if p.grad is not None)
        about = {"per": DOUBLE, "stage": stage, "processes": world.size}
        states = model_states(model.config, **about)
        assert held == states.gradients
        optimizer.reduce()
        clip_parts(optimizer.parts, 0.5, world)
        optimizer.step()
        size = sum(p.nbytes for p in model.parameters())
        assert wire.sent - sent == ring_bytes("all_reduce", size, world.size)
        assert bytes_of_moments(optimizer.optimizer) == states.optimizer
    assert_all_close(dict(model.named_parameters()), one_process(world.size))


def bytes_of_moments(optimizer: torch.optim.Optimizer) -> int:
    states = optimizer.state.values()
    return sum(t.nbytes for s in states for name, t in s.items() if name != "step")


def zero_3(world: World, tied: bool) -> None:
    (model, batch), wire = model_and_batch(world.size, tied), Wire(world)
    plain, blocks = (
        copy.deepcopy(model),
        sum(p.nbytes for p in model.layers.parameters()),
    )
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts = list(shard_weights(model, wire).parameters())
    optimizer = ADAMW(parts)
    mine = world.share(batch).tokens
    with checkpointing(plain):
        activations = saved_bytes(plain, lambda: plain(mine))
    with checkpointing(model):
        # The head and the norm before it are no block; all other weights are gone.
        gathered = plain.lm_head.weight.nbytes + plain.norm.weight.nbytes
        assert saved_bytes(model, lambda: model(mine)) == activations + gathered
        for _ in range(2):
            optimizer.zero_grad()
            sent = wire.sent
            backward_share(model, batch, world)
            size = sum(p.nbytes for p in plain.parameters())
            size += tied * plain.lm_head.weight.nbytes  # it is used twice, asked twice
            each = ring_bytes("all_gather", size, world.size)
            again = ring_bytes("all_gather", blocks, world.size)
            assert wire.sent - sent == 2 * each + again
            clip_parts(parts, 0.5, world)
            optimizer.step()
    about = {"per": DOUBLE, "stage": 3, "processes": world.size}
    states = model_states(model.config, **about)
    assert sum(p.nbytes for p in parts) == states.weights
    assert sum(p.grad.nbytes for p in parts) == states.gradients
    assert bytes_of_moments(optimizer) == states.optimizer
    expected = one_process(world.size, tied)
    for name, shape in shapes.items():
        module, _, attribute = name.rpartition(".")
        weight = getattr(model.get_submodule(module), attribute).detach()
        assert weight.shape == shape
        assert_all_close({name: weight}, expected)


def tensor_parallel(world: World, tied: bool) -> None:
    (model, batch), wire = model_and_batch(world.size, tied), Wire(world)
    expected = next_token_loss(model(batch.tokens), *batch)
    gradients = one_process(world.size, tied=tied, steps=0)
    loss = vocabulary_loss(cut_model(model, wire)(batch.tokens), *batch, wire)
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    ends = {"o_proj.0.weight": 1, "down_proj.0.weight": 1}  # cut by columns
    for name, p in model.named_parameters():
        dim = next((d for end, d in ends.items() if name.endswith(end)), 0)
        plain = name.replace("_proj.0.", "_proj.").replace("norm.0.", "norm.")
        whole = gradients[plain]
        part = whole if p.ndim == 1 else whole.chunk(world.size, dim)[world.rank]
        assert_all_close({plain: p.grad}, {plain: part})
    stream = ring_bytes("all_reduce", B * T * 24 * 8, world.size)
    numbers = ring_bytes("all_reduce", B * T * 8, world.size)
    # Two a block in each direction, the embedding forward and the head backward; of the
    # loss the largest logit, then sum and target.
    assert wire.sent == (4 * world.size + 2) * stream + 3 * numbers


def extreme_logits(world: World) -> None:
    torch.manual_seed(3)
    logits, ids = 1e4 * torch.randn(2, 4, 30), torch.randint(30, (2, 4))
    share = logits.chunk(world.size, -1)[world.rank].clone().requires_grad_()
    loss = vocabulary_loss(share, ids, None, Wire(world))
    loss.backward()
    expected = next_token_loss(logits.requires_grad_(), ids)
    expected.backward()
    torch.testing.assert_close(loss, expected)  # float32: its own tolerance
    part = logits.grad.chunk(world.size, -1)[world.rank]
    torch.testing.assert_close(share.grad, part)


def pipeline(world: World, schedule, m: int) -> None:
    (model, batch), wire = model_and_batch(world.size, tied=False), Wire(world)
    expected = next_token_loss(model(batch.tokens), *batch)
    gradients = one_process(world.size, tied=False, steps=0)
    stage = Stage(model, wire)
    loss = run_schedule(stage, schedule(world.size, m)[world.rank], batch, m)
    if stage.last:
        assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, p in stage.named_parameters():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = str(int(parts[1]) + world.rank)
        assert_all_close({name: p.grad}, {name: gradients[".".join(parts)]})
    borders = (not stage.first) + (not stage.last)
    assert wire.sent == borders * B * T * 24 * 8


def experts(world: World) -> None:
    torch.manual_seed(2)
    n, here, C = world.size, 2, 4
    E = n * here
    layers = [
        nn.Sequential(nn.Linear(C, 5), nn.SiLU(), nn.Linear(5, C)).double()
        for _ in range(E)
    ]
    alone = copy.deepcopy(layers)
    # Process 0 has no tokens, and nobody chooses the last expert.
    xs = [torch.randn(5 * r, C, dtype=torch.float64) for r in range(n)]
    choices = [torch.randint(E - 1, (5 * r,)) for r in range(n)]
    mine = layers[here * world.rank :][:here]
    x, choice = xs[world.rank].requires_grad_(), choices[world.rank]
    wire = Wire(world)
    y = expert_parallel(x, choice, mine, wire)
    y.square().sum().backward()
    everything = torch.cat([x.detach() for x in xs]).requires_grad_()
    c = torch.cat(choices)
    expected = torch.stack([alone[e](t) for t, e in zip(everything, c, strict=True)])
    expected.square().sum().backward()
    rows = slice(sum(map(len, xs[: world.rank])), sum(map(len, xs[: world.rank + 1])))
    torch.testing.assert_close(y, expected[rows], **CLOSE)
    torch.testing.assert_close(x.grad, everything.grad[rows], **CLOSE)
    for ours, theirs in zip(mine, alone[here * world.rank :], strict=False):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            grad = torch.zeros_like(q) if q.grad is None else q.grad
            torch.testing.assert_close(p.grad, grad, **CLOSE)
    leave = int((choice // here != world.rank).sum())
    origin = torch.cat([torch.full((len(c),), r) for r, c in enumerate(choices)])
    arrive = int(((c // here == world.rank) & (origin != world.rank)).sum())
    # There and back, forward and backward; identities; lengths of five exchanges.
    assert wire.sent == 2 * (leave + arrive) * C * 8 + leave * 8 + 5 * (n - 1) * 8


CASES = {
    "ring": ring,
    "data parallel, one bucket": partial(data_parallel, bucket_mb=25),
    "data parallel, many buckets": partial(data_parallel, bucket_mb=0.02),
    "zero 1": partial(zero, stage=1),
    "zero 2": partial(zero, stage=2),
    "zero 3, tied": partial(zero_3, tied=True),
    "zero 3, untied": partial(zero_3, tied=False),
    "tensor parallel, tied": partial(tensor_parallel, tied=True),
    "tensor parallel, untied": partial(tensor_parallel, tied=False),
    "extreme logits": extreme_logits,
    "gpipe": partial(pipeline, schedule=gpipe, m=3),
    "1f1b": partial(pipeline, schedule=one_f_one_b, m=6),
    "1f1b, one micro-batch": partial(pipeline, schedule=one_f_one_b, m=1),
    "experts": experts,
}


def every_case(world: World) -> list[str]:
    done = []
    for name, case in CASES.items():
        try:
            case(world)
        except AssertionError as error:
            raise AssertionError(f"case {name!r}") from error
        done.append(name)
    return done


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_equal_one_and_send_what_theory_says(size):
    assert launch(every_case, size) == [list(CASES)] * size


# --- when something goes wrong -------------------------------------------------------


def note_and(world: World, folder: str, what: str) -> None:
    """Leave a process id behind, meet the others, and let something happen."""
    Path(folder, f"{os.getpid()}.pid").touch()
    dist.barrier()
    if what == "sleep":
        time.sleep(300)
    if world.rank == 1:
        Path(folder, "when").write_text(str(time.time()))
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("one gradient too many")
    dist.barrier()


def left_running(folder: Path) -> list[str]:
    pids = [path.stem for path in folder.glob("*.pid")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kill", "process 1 of 2 ended by signal SIGKILL, without a result"),
        ("raise", "process 1 of 2 failed:(?s:.*)one gradient too many"),
    ],
)
def test_when_one_dies_the_others_stop_within_ten_seconds(what, message, tmp_path):
    with pytest.raises(WorkerFailed, match=message):
        launch(note_and, 2, str(tmp_path), what)
    assert time.time() - float((tmp_path / "when").read_text()) < 10
    assert len(list(tmp_path.glob("*.pid"))) == 2
    assert left_running(tmp_path) == []


def test_who_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(WorkerFailed, match=r"no result from \[0\] of 1 in time"):
        launch(note_and, 1, str(tmp_path), "sleep", timeout=5)
    assert left_running(tmp_path) == []


LAUNCHER = """
import sys
from minillm.systems import launch
from test_systems_processes import note_and
if __name__ == "__main__":
    launch(note_and, 1, sys.argv[1], "sleep")
"""


def test_when_the_one_who_started_them_is_killed_the_workers_end(tmp_path):
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    started = subprocess.Popen([sys.executable, script, tmp_path], env=environment)
    wait_for(lambda: list(tmp_path.glob("*.pid")), 60)
    started.kill()
    started.wait()
    wait_for(lambda: not left_running(tmp_path), 10)


def wait_for(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)
