"""Files that are whole or absent, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillm.files import DiskFullError, atomic_write, is_disk_full
from minillm.training import MetricsLog, read_metrics

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
linux = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs Linux's always full device"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    for text in ("one", "two"):
        with atomic_write(target) as temporary:
            # the same name, as some writers look at it; the same disk, to be renamed
            assert temporary.name == target.name
            assert temporary.parent.parent == target.parent
            temporary.write_text(text)
        assert target.read_text() == text
        assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        (temporary.parent / ".tmpXYZ").write_text("a writer's own temporary file")
        raise error("midway")
    assert target.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_the_old_file_is_there_until_the_very_end(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EFBIG, "x"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_called_by_its_name_and_changes_nothing(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with (  # noqa: PT012
        pytest.raises(DiskFullError, match=r"file.txt.*disk is full; free some"),
        atomic_write(target) as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(ValueError("shape"))
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        pass  # a body that writes nothing


WRITER = """
import sys, time
from minillm.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"x" * 1000)
    print("half", flush=True)
    time.sleep(60)
"""


@posix
def test_what_a_killed_writer_left_is_cleaned_by_the_next_and_a_living_ones_is_not(
    tmp_path,
):
    target, others = tmp_path / "a[1].bin", tmp_path / "a1.bin"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", WRITER]
    dead = subprocess.Popen([*command, target], stdout=subprocess.PIPE)
    alive = subprocess.Popen([*command, target], stdout=subprocess.PIPE)
    foreign = subprocess.Popen([*command, others], stdout=subprocess.PIPE)
    try:
        for process in (dead, alive, foreign):
            assert process.stdout.readline() == b"half\n"
        for process in (dead, foreign):
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert target.read_bytes() == b"old"
        assert len(names(tmp_path)) == 4
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"new")
        assert target.read_bytes() == b"new"
        left = [f".a1.bin.{foreign.pid}.tmp", f".a[1].bin.{alive.pid}.tmp", "a[1].bin"]
        assert names(tmp_path) == sorted(left)  # of another target: not ours to judge
    finally:
        for process in (dead, alive, foreign):
            process.kill()
            process.communicate()


def test_files_that_only_look_like_leftovers_are_left_alone(tmp_path):
    for name in (".file.txt.notes.tmp", ".file.txt.tmp", "file.txt.1.tmp"):
        (tmp_path / name).write_text("mine")
    before = names(tmp_path)
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == sorted([*before, "file.txt"])


def test_a_window_without_signals_goes_by_the_age_of_a_leftover(tmp_path, monkeypatch):
    from minillm import files

    old, young = tmp_path / ".f.111.tmp", tmp_path / ".f.222.tmp"
    for path in (old, young):
        path.mkdir()
        (path / "f").write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    monkeypatch.setattr(files, "_has_signals", lambda: False)
    with atomic_write(tmp_path / "f") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == [".f.222.tmp", "f"]


# --- the metrics log ----------------------------------------------------------------


def test_a_log_is_cut_to_what_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.append({"step": step, "loss": 1 / (step + 3)})
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2, 3, 4]
    again = MetricsLog(path, before=3)
    assert again.column("loss") == log.column("loss")[:3]  # to the last bit
    again.append({"step": 3})
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2, 3]
    assert MetricsLog(path).records == [] and path.read_text() == ""


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1]\n", b"{}\n", b"1\n\n"])
def test_a_foreign_log_is_an_empty_log(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert read_metrics(path) == []


@linux
def test_a_log_on_a_full_disk_says_so():
    log = MetricsLog(None)
    log.path = Path("/dev/full")
    with pytest.raises(DiskFullError, match=r"cannot grow.*resume from the last"):
        log.append({"step": 0})
    assert log.records == []  # file and memory agree


LIMITED = """
import resource, sys
from minillm.files import DiskFullError
from minillm.training import MetricsLog
log = MetricsLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    for step in range(100):
        log.append({"step": step, "text": "x" * 20})
except DiskFullError:
    print("full at", step)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
log.append({"step": step})
"""


@posix
def test_half_a_line_of_a_full_disk_does_not_swallow_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", LIMITED, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "full at 2\n"
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "weights") as temporary:
            save_file({"w": zeros(1)}, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o644
