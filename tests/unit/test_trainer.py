"""The loop: one step is one step however it is cut, and no run is lost."""

import contextlib
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm.data.batches import Batch, Windows
from minillm.files import DiskFullError
from minillm.model import GPT, GPTConfig
from minillm.training import (
    TrainConfig,
    Trainer,
    TrainingInterrupted,
    load_checkpoint,
    load_model,
    read_metrics,
    save_checkpoint,
)
from minillm.training import trainer as trainer_module
from minillm.training.checkpoints import restore

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
OPTIMIZERS = ("muon", "adamw", "adamw-by-hand")
CONFIG = GPTConfig(vocab_size=17, n_layer=1, n_head=2, n_embd=16, context=16)
TRAIN = TrainConfig(steps=10, warmup=2, save_every=100, lr=0.01)


def model_of(config: GPTConfig = CONFIG, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def windows(seed: int = 0) -> Windows:
    stream = torch.randint(17, (500,), generator=torch.Generator().manual_seed(1))
    return Windows(stream, T=9, B=4, seed=seed)


def trainer_in(folder, config: TrainConfig = TRAIN, **options) -> Trainer:
    batches = options.pop("batches", windows())
    model = options.pop("model", None) or model_of()
    return Trainer(model, batches, config, folder, progress=False, **options)


def run_until(folder, step: int, config: TrainConfig = TRAIN, **options) -> Trainer:
    """Train, with Ctrl-C pressed in the middle of the ``step``-th step."""

    def press(trainer: Trainer) -> None:
        if trainer.step == step:
            signal.raise_signal(signal.SIGINT)

    trainer = trainer_in(folder, config, on_step=press, **options)
    with pytest.raises(TrainingInterrupted):
        trainer.fit()
    return trainer


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights and moments by name."""
    names = {p: name for name, p in trainer.model.named_parameters()}
    tensors = dict(trainer.model.state_dict())
    for optimizer in trainer.optimizers:
        for w, state in optimizer.state.items():
            for entry, value in state.items():
                tensors[f"{names[w]}/{entry}"] = torch.as_tensor(value)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_bit_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not ours[name].equal(theirs[name])]
    assert not different


def measured(folder: Path) -> list[dict]:
    """The metrics but for how long each step took."""
    records = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- one step -----------------------------------------------------------------------


class Listed(list):
    """Batches from a list; no fingerprint."""


def cut(tokens, mask, B: int) -> Listed:
    return Listed(map(Batch, tokens.split(B), mask.split(B)))


def ragged(steps: int = 3, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with very unequal numbers of targets, one in six without any."""
    tokens = torch.randint(17, (steps * rows, 9))
    lengths = torch.tensor([9, 2, 5, 1, 3, 7]).repeat(steps)
    return tokens, torch.arange(9) < lengths[:, None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("A", [2, 3, 6])
def test_accumulated_batches_are_one_batch_in_loss_gradient_and_weights(optimizer, A):
    # M03: a mean of means would weigh row 3's single target like row 0's eight. At
    # A = 6 one batch has no target at all, which is no reason to stop.
    tokens, mask = ragged()
    ends, records = [], []
    for accumulate in (1, A):
        config = replace(TRAIN, steps=3, optimizer=optimizer, accumulate=accumulate)
        batches = cut(tokens, mask, 6 // accumulate)
        trainer = trainer_in(None, config, model=model_of().double(), batches=batches)
        steps = []
        for _ in range(3):
            record = trainer.train_step()
            gradients = [p.grad.clone() for p in trainer.model.parameters()]
            steps.append((record["loss"], record["grad_norm"], gradients))
            assert record["tokens"] == mask[:6, 1:].sum()
        ends.append(everything(trainer))
        records.append(steps)
    for (loss, norm, whole), (loss_2, norm_2, parts) in zip(*records, strict=True):
        assert loss_2 == pytest.approx(loss, rel=1e-10)
        assert norm_2 == pytest.approx(norm, rel=1e-10)
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-10, atol=1e-14)


def test_the_reported_loss_is_that_of_all_targets_before_the_step():
    tokens, mask = ragged(steps=1)
    model = model_of().double()
    with torch.no_grad():
        logprobs = model(tokens)[:, :-1].log_softmax(-1)
    nats = -logprobs.gather(-1, tokens[:, 1:, None])[..., 0][mask[:, 1:]]
    batches, config = cut(tokens, mask, 2), replace(TRAIN, accumulate=3)
    record = trainer_in(None, config, model=model, batches=batches).train_step()
    assert record["loss"] == pytest.approx(nats.mean().item(), rel=1e-12)
    assert record["step"] == 0 and record["lr"] == TRAIN.lr / 2  # warm-up over 2


def test_a_step_without_any_target_is_refused():
    tokens, mask = ragged(steps=1)
    batches = cut(tokens, torch.zeros_like(mask), 6)
    with pytest.raises(ValueError, match="targets must be at least 1"):
        trainer_in(None, batches=batches).train_step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_falls_on_a_stream_that_can_be_learned(optimizer, dtype):
    stream = torch.arange(17).repeat(40)  # the next token is always one more
    config = replace(TRAIN, steps=60, optimizer=optimizer)
    trainer = trainer_in(
        None, config, model=model_of().to(dtype), batches=Windows(stream, T=9, B=8)
    )
    losses = trainer.fit().column("loss")
    assert losses[0] == pytest.approx(math.log(17), abs=0.1)
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == dtype for p in trainer.model.parameters())


def test_bfloat16_autocast_trains_float32_weights():
    stream = torch.arange(17).repeat(40)
    batches = Windows(stream, T=9, B=8)
    runs = {}
    for precision in ("float32", "bfloat16"):
        config = replace(TRAIN, steps=60, precision=precision)
        trainer = trainer_in(None, config, batches=batches)
        runs[precision] = trainer.fit().column("loss")
        tensors = everything(trainer).values()
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert runs["bfloat16"] != runs["float32"]  # it did something
    # 8 bits of precision in the products: the first loss is off by far less than 1 %
    assert runs["bfloat16"][0] == pytest.approx(runs["float32"][0], rel=0.01)
    assert runs["bfloat16"][-1] < 0.5 * runs["bfloat16"][0]


def test_frozen_parameters_stay_and_the_others_move():
    model = model_of()
    model.layers[0].requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    trainer_in(None, model=model).fit()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]) == name.startswith("layers.")


def test_gradients_that_others_left_behind_are_not_part_of_a_step():
    plain, polluted = trainer_in(None), trainer_in(None)
    for parameter in polluted.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert plain.train_step()["grad_norm"] == polluted.train_step()["grad_norm"]
    assert_bit_equal(everything(plain), everything(polluted))


def test_a_step_that_was_broken_off_can_be_done_again(monkeypatch):
    plain, broken = trainer_in(None), trainer_in(None)
    plain.train_step()

    def second_interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "clip_gradients", second_interrupt)
        with pytest.raises(KeyboardInterrupt):
            broken.train_step()
    broken.train_step()
    assert_bit_equal(everything(plain), everything(broken))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(tmp_path, bad):
    def poison(trainer: Trainer) -> None:
        if trainer.step == 3:
            trainer.save()
            trainer.model.norm.weight.data[0] = bad

    trainer = trainer_in(tmp_path, on_step=poison)
    with pytest.raises(FloatingPointError, match=r"step 3; lower lr or matrix_lr"):
        trainer.fit()
    assert trainer.step == 3
    assert trainer.model.embed_tokens.weight.isfinite().all()
    assert len(measured(tmp_path)) == 3
    assert trainer_in(tmp_path).step == 3  # and the last checkpoint is a good one


# --- resume -------------------------------------------------------------------------


def scatter_seeds(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    np.random.standard_normal()  # noqa: NPY002 - leaves a second one in reserve
    random.gauss(0, 1)


def draws() -> list[float]:
    legacy = np.random.standard_normal(2).tolist()  # noqa: NPY002
    return [torch.rand(1).item(), random.gauss(0, 1), random.random(), *legacy]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path, optimizer, stop
):
    config, whole, parts = (
        replace(TRAIN, optimizer=optimizer),
        tmp_path / "a",
        tmp_path / "b",
    )
    model = model_of()
    scatter_seeds(7)
    uninterrupted = trainer_in(whole, config, model=model)
    uninterrupted.fit()
    expected_draws = draws()

    model = model_of()
    scatter_seeds(7)
    run_until(parts, stop, config, model=model)
    model = model_of(seed=99)  # a new process would start from other weights
    scatter_seeds(99)
    resumed = trainer_in(parts, replace(config, save_every=3), model=model)
    assert resumed.step == stop
    resumed.fit()

    assert_bit_equal(everything(resumed), everything(uninterrupted))
    assert draws() == expected_draws
    assert measured(parts) == measured(whole) and len(measured(parts)) == 10
    files = [load_file(folder / "checkpoint.safetensors") for folder in (whole, parts)]
    assert_bit_equal(*files)
    assert set(contents(parts)) == {"checkpoint.safetensors", "metrics.jsonl"}


def test_a_finished_run_resumes_to_nothing_left_to_do(tmp_path):
    first = trainer_in(tmp_path)
    log = first.fit()
    again = trainer_in(tmp_path, model=model_of(seed=5))
    assert again.fit().records == log.records
    assert_bit_equal(everything(again), everything(first))


def test_resume_false_begins_afresh(tmp_path):
    first = trainer_in(tmp_path).fit().column("loss")
    again = trainer_in(tmp_path, resume=False)
    assert again.step == 0 and measured(tmp_path) == []
    assert again.fit().column("loss") == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": replace(TRAIN, lr=0.02)}, "'lr': (0.01, 0.02)"),
        ({"config": replace(TRAIN, steps=11)}, "'steps': (10, 11)"),
        ({"config": replace(TRAIN, betas=(0.9, 0.99))}, "'betas'"),
        ({"config": replace(TRAIN, optimizer="adamw")}, "'optimizer'"),
        ({"batches": windows(seed=1)}, "'data'"),
        ({"model": model_of(replace(CONFIG, n_layer=2))}, "n_layer"),
        ({"model": model_of(replace(CONFIG, n_head=4, n_kv_head=4))}, "n_head"),
        ({"model": model_of(replace(CONFIG, rope_theta=500.0))}, "rope_theta"),
        ({"model": model_of(replace(CONFIG, norm_eps=1e-6))}, "norm_eps"),
        ({"model": model_of(replace(CONFIG, tied=False))}, "tied"),
        ({"model": model_of().double()}, "float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused_with_the_difference_named(tmp_path, change, named):
    # Another n_head, theta or eps would fit the same tensors and ruin the run silently.
    run_until(tmp_path, 4)
    files, options = contents(tmp_path), {"model": model_of(seed=3)} | change
    before = {n: t.clone() for n, t in options["model"].state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="checkpoint") as refused:
        trainer_in(tmp_path, **options)
    assert named in str(refused.value)
    assert contents(tmp_path) == files
    assert_bit_equal(dict(options["model"].state_dict()), before)
    assert torch.get_rng_state().equal(state)


def test_settings_that_change_no_weight_may_change(tmp_path):
    run_until(tmp_path, 4)
    other = replace(TRAIN, save_every=1, parallel="fsdp")
    assert trainer_in(tmp_path, other).step == 4


def test_a_checkpoint_is_not_restored_into_other_optimizers(tmp_path):
    run_until(tmp_path, 4)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    model = model_of(seed=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for name in ("adamw", "adamw-by-hand"):
        other = trainer_in(None, replace(TRAIN, optimizer=name), model=model)
        with pytest.raises(ValueError, match="of these optimizers"):
            restore(checkpoint, model, other.optimizers)
    with pytest.raises(ValueError, match="of these optimizers"):
        restore(checkpoint, model, [])
    assert_bit_equal(dict(model.state_dict()), before)


def test_restoring_forgets_what_the_optimizers_knew(tmp_path):
    fresh, used = trainer_in(tmp_path), trainer_in(None)
    fresh.save()  # at step 0: no moments yet
    used.fit()
    restore(load_checkpoint(fresh.checkpoint), used.model, used.optimizers)
    assert_bit_equal(everything(used), everything(fresh))


# --- damaged files ------------------------------------------------------------------


def damaged(good: bytes) -> dict[str, bytes]:
    size = int.from_bytes(good[:8], "little")
    cuts = (0, 1, 7, 8, 9, 8 + size // 2, 8 + size, len(good) // 2, len(good) - 1)
    files = {f"cut to {n} bytes": good[:n] for n in cuts}
    return files | {
        "a text": b"once upon a time, there was a checkpoint" * 50,
        "zeros": bytes(5000),
        "a pickle": b"\x80\x02}q\x00." * 100,
        "longer": good + b"x",
        "no JSON": good[:20] + b"\xff\xfe" + good[22:],
        "a header too long": (10**12).to_bytes(8, "little") + good[8:],
        "a foreign format": good.replace(
            b"minillm checkpoint 1", b"somebody else's file"
        ),
        "a step missing": good.replace(b'"step":', b'"stop":'),
        "a bad config": good.replace(b'\\"n_head\\": 2', b'\\"n_head\\": 7'),
        "an unknown size": good.replace(b'\\"n_head\\"', b'\\"n_hats\\"'),
    }


def test_a_damaged_checkpoint_is_called_one_and_nothing_changes(tmp_path):
    trainer = run_until(tmp_path, 4)
    path = trainer.checkpoint
    good, model = path.read_bytes(), model_of(seed=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for what, content in damaged(good).items():
        assert content != good, what
        path.write_bytes(content)
        files, state = contents(tmp_path), torch.get_rng_state()
        for load in (load_checkpoint, load_model):
            with pytest.raises(ValueError, match=r"path must be .*checkpoint.saf"):
                load(path)
        with pytest.raises(ValueError, match="minillm"):
            trainer_in(tmp_path, model=model)
        assert contents(tmp_path) == files, what
        assert_bit_equal(dict(model.state_dict()), before)
        assert torch.get_rng_state().equal(state), what
    path.write_bytes(good)
    assert trainer_in(tmp_path, model=model).step == 4


def test_random_damage_to_the_header_is_a_value_error_or_harmless(tmp_path):
    path = run_until(tmp_path, 2).checkpoint
    good, rng = path.read_bytes(), random.Random(0)
    size = int.from_bytes(good[:8], "little")
    for _ in range(300):
        content = bytearray(good)
        content[rng.randrange(8 + min(size, 3000))] = rng.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(ValueError):  # but no KeyError, no RuntimeError
            load_checkpoint(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    for load in (load_checkpoint, load_model):
        for path in (tmp_path / "none.safetensors", tmp_path):
            with pytest.raises(FileNotFoundError, match="train first or correct"):
                load(path)
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="must be a 'minillm checkpoint 1' file"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_a_loaded_checkpoint_does_not_hang_on_to_its_file(tmp_path):
    # Windows cannot replace a file that is mapped, and a resumed run must.
    path = run_until(tmp_path, 2).checkpoint
    checkpoint = load_checkpoint(path)
    before = {name: t.clone() for name, t in checkpoint.tensors.items()}
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_bit_equal(checkpoint.tensors, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_loads_as_it_was_saved(tmp_path, dtype, tied):
    model = model_of(replace(CONFIG, tied=tied)).to(dtype)
    save_checkpoint(tmp_path / "c.safetensors", model, [], 3, {"a": 1})
    loaded = load_model(tmp_path / "c.safetensors")
    assert loaded.config == model.config and not loaded.training
    assert_bit_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) is tied
    tokens = torch.randint(17, (2, 5))
    assert loaded(tokens).equal(model(tokens))


# --- a full disk --------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint_and_no_temporary_file(
    tmp_path, monkeypatch
):
    run_until(tmp_path, 4)
    old = contents(tmp_path)["checkpoint.safetensors"]

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        Path(path).with_name(".tmpXYZ").write_bytes(b"safetensors writes here first")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(
            DiskFullError, match=r"free some space.*Nothing was changed"
        ):
            trainer_in(tmp_path, replace(TRAIN, save_every=1)).fit()
    assert set(contents(tmp_path)) == {"checkpoint.safetensors", "metrics.jsonl"}
    assert contents(tmp_path)["checkpoint.safetensors"] == old
    resumed = trainer_in(tmp_path)
    assert resumed.step == 4
    resumed.fit()
    uninterrupted = trainer_in(None)
    uninterrupted.fit()
    assert_bit_equal(everything(resumed), everything(uninterrupted))


CHILD = """
import sys, time
import torch
torch.set_num_threads(1)
from minillm.data.batches import Windows
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, Trainer

def trainer(folder, steps, save_every, **options):
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, n_layer=1, n_head=2, n_embd=16, context=16))
    stream = torch.randint(17, (500,), generator=torch.Generator().manual_seed(1))
    config = TrainConfig(steps, warmup=2, save_every=save_every, lr=0.01)
    windows = Windows(stream, T=9, B=4)
    return Trainer(model, windows, config, folder, progress=False, **options)

folder = sys.argv[1]
"""


def python(script: str, *arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD + script, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


FULL = """
import resource, signal
from pathlib import Path
from minillm.files import DiskFullError
first = trainer(folder, 10, 100)
first.train_step()
first.save()
size = Path(first.checkpoint).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
try:
    trainer(folder, 10, 1).fit()
except DiskFullError as error:
    print(error)
"""


@posix
def test_a_limit_of_the_operating_system_is_a_full_disk_too(tmp_path):
    child = python(FULL, tmp_path)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "the disk is full; free some space" in out
    assert set(contents(tmp_path)) == {"checkpoint.safetensors", "metrics.jsonl"}
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").step == 1


# --- interruptions ------------------------------------------------------------------


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = run_until(tmp_path, 4)
    assert trainer.step == 4 and len(measured(tmp_path)) == 4
    assert load_checkpoint(trainer.checkpoint).step == 4
    assert signal.getsignal(signal.SIGINT) is before

    again = trainer_in(tmp_path, on_step=lambda t: signal.raise_signal(signal.SIGINT))
    said = r"stopped after step 5 of 10; saved .*checkpoint.safetensors. Run the same"
    with pytest.raises(KeyboardInterrupt, match=said):  # as any program expects it
        again.fit()
    nowhere = trainer_in(None, on_step=lambda t: signal.raise_signal(signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="nothing was saved"):
        nowhere.fit()


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def press_twice(trainer: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still waiting")

    before = signal.getsignal(signal.SIGINT)
    trainer = trainer_in(tmp_path, on_step=press_twice)
    with pytest.raises(KeyboardInterrupt) as stopped:
        trainer.fit()
    assert not isinstance(stopped.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is before


INTERRUPTED = """
def say(trainer):
    print("done", trainer.step, flush=True)
    time.sleep(0.02)

trainer(folder, int(sys.argv[2]), 100_000, on_step=say).fit()
print("finished")
"""


@posix
@pytest.mark.slow
def test_ctrl_c_in_a_real_process_and_the_same_command_again(tmp_path):
    child = python(INTERRUPTED, tmp_path, 40)
    while child.stdout.readline() != "done 5\n":
        assert child.poll() is None, child.stderr.read()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0 and "finished" not in out
    assert "TrainingInterrupted: stopped after step" in err
    assert "Run the same command again to go on." in err
    done = load_checkpoint(tmp_path / "checkpoint.safetensors").step
    assert 5 <= done < 40

    child = python(INTERRUPTED, tmp_path, 40)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out.splitlines()[0] == f"done {done + 1}"
    assert out.splitlines()[-1] == "finished"
    records = measured(tmp_path)
    assert [record["step"] for record in records] == list(range(40))


KILLED = """
import os, random, signal
from pathlib import Path
from minillm.training import load_checkpoint

def in_child(folder, steps=150):
    pid = os.fork()  # a new process for each try, without importing torch each time
    if pid == 0:
        try:
            trainer(folder, steps, 1).fit()
            os._exit(0)
        finally:
            os._exit(1)
    return pid

# Import here what torch imports late, but run no backward pass: it may start threads.
for optimizer in trainer(folder + "/imports", 1, 1).optimizers:
    optimizer.step()

def seconds(name, steps):
    start = time.perf_counter()
    assert os.waitpid(in_child(f"{folder}/{name}", steps), 0)[1] == 0
    return time.perf_counter() - start

a_step = seconds("whole", 150) / 150
rng, kills, steps, halves = random.Random(0), 0, [0], 0
parts = Path(folder) / "parts"
checkpoint = parts / "checkpoint.safetensors"

def saved():
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

for _ in range(20):  # let it save some times, then kill it somewhere in the next step
    pid, before = in_child(str(parts)), saved()
    for _ in range(rng.randrange(5)):
        deadline = time.monotonic() + 10
        while saved() == before and time.monotonic() < deadline:
            time.sleep(a_step / 20)
        before = saved()
    time.sleep(rng.uniform(0, 1.5 * a_step))
    os.kill(pid, signal.SIGKILL)
    kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    halves += len(list(parts.glob(".*.tmp"))) > 0
    if checkpoint.exists():
        steps.append(load_checkpoint(checkpoint).step)
    assert steps == sorted(steps), steps
    assert len(list(parts.glob(".*.tmp"))) <= 2, "leftovers pile up"
assert os.waitpid(in_child(str(parts)), 0)[1] == 0
print(kills, len(set(steps)), halves)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its children")
def test_a_run_that_is_killed_again_and_again_ends_where_it_would_have_ended(tmp_path):
    child = python(KILLED, tmp_path)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    kills, places, _halves = map(int, out.split())
    assert kills >= 15 and places >= 4  # it was hit in many places and got ahead
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert set(contents(parts)) == {"checkpoint.safetensors", "metrics.jsonl"}
    files = [load_file(folder / "checkpoint.safetensors") for folder in (whole, parts)]
    assert_bit_equal(*files)
    assert measured(parts) == measured(whole) and len(measured(parts)) == 150


# --- doors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"accumulate": 0},
        {"save_every": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"matrix_lr": -1.0},
        {"clip": 0.0},
        {"schedule": "linear"},
        {"warmup": -1},
        {"floor": -0.1},
        {"floor": 2.0},
        {"weight_decay": -0.1},
        {"precision": "float16"},
        {"parallel": "tensor"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_before_anything_is_built(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        TrainConfig(**({"steps": 10} | bad))


def test_metrics_are_one_json_object_a_line(tmp_path):
    trainer_in(tmp_path).fit()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    names = {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}
    assert [set(json.loads(line)) for line in lines] == [names] * 10
