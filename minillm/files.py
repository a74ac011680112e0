"""Files that are either whole or not there.

Whoever writes a checkpoint in place loses it if the power fails half-way. So: write
beside the target, flush to the disk, then rename. A rename within one folder is atomic
on every platform, so a reader sees the old file or the new one and never half of one.
"""

import contextlib
import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.errors import require, require_file


class DiskFullError(OSError):
    """The disk (or the quota) has no room left; the target is as it was before."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path near ``path``; on success rename it over ``path``.

    The body may fail or the process may be killed at any moment: ``path`` then still
    holds what it held before. Folders are created as needed.

    Raises:
        DiskFullError: no room left; says how much is free and what was kept.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_write(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    # A folder, because writers such as safetensors make temporary files of their own.
    workshop = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary = workshop / path.name
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may keep the name, not the bytes
        # safetensors makes files that only their owner may read; give what umask gives.
        os.chmod(temporary, workshop.stat().st_mode & 0o666)
        os.replace(temporary, path)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"path {str(path)!r} could not be written, the disk is full; free some "
                "space or choose another folder. Nothing was changed."
            ) from error
        raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def save_tensors(path: str | Path, tensors: dict, header: dict[str, str]) -> None:
    """Write tensors by name, and texts that describe them, as one safetensors file.

    Raises:
        DiskFullError: see ``atomic_write``.
    """
    from safetensors.torch import save_file  # here: this module is to stay cheap

    with atomic_write(path) as temporary:
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, header)


def load_tensors(path: str | Path, remedy: str) -> tuple[dict[str, Any], dict]:
    """Read what ``save_tensors`` wrote: tensors by name, and the header.

    Args:
        path: a safetensors file, whoever wrote it.
        remedy: what the user can do if there is none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no safetensors file, or a damaged one.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "some.safetensors"
    >>> save_tensors(path, {"w": torch.ones(2)}, {"step": "3"})
    >>> load_tensors(path, "save first")
    ({'w': tensor([1., 1.])}, {'step': '3'})
    """
    from safetensors import SafetensorError, safe_open

    require_file(path, remedy)
    try:
        with safe_open(path, framework="pt") as file:
            # Clones: views of an open file keep Windows from ever replacing it.
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        intact = f"an intact safetensors file ({error})"
        require(False, "path", str(path), intact, remedy)


def shapes(tensors: dict) -> dict[str, str]:
    """The shape and type of each tensor, to compare what a file holds with a model.

    >>> import torch
    >>> shapes({"w": torch.ones(2, 3)})
    {'w': '(2, 3) of torch.float32'}
    """
    return {n: f"{tuple(t.shape)} of {t.dtype}" for n, t in tensors.items()}


def write_json(path: str | Path, content: dict, indent: int | None = None) -> None:
    """Write a dictionary as one JSON file.

    Raises:
        DiskFullError: see ``atomic_write``.
    """
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=indent) + "\n"
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file: all of it or, if that fails, nothing.

    Raises:
        DiskFullError: no room for it.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # half a line would swallow the next one
        if is_disk_full(error):
            raise DiskFullError(
                f"path {str(path)!r} cannot grow, the disk is full; free some space "
                "and resume from the last checkpoint."
            ) from error
        raise


def _remove_leftovers(path: Path) -> None:
    """Delete what processes left that were killed while they wrote ``path``."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError, ValueError, OverflowError):
            if not _may_be_writing(int(leftover.suffixes[-2][1:]), leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def _has_signals() -> bool:
    return os.name != "nt"


def _may_be_writing(pid: int, workshop: Path) -> bool:
    if not _has_signals():  # signal 0 would end the process there; go by age
        return time.time() - workshop.stat().st_mtime < 3600
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process, but a process
    return True


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that no space (or quota) is left, in any library's words.

    safetensors, for one, raises its own exception type and keeps only the text.
    """
    code = getattr(error, "errno", None)
    full = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
    words = ("no space left", "disk full", "file too large", "quota exceeded")
    return code in full or any(word in str(error).lower() for word in words)
