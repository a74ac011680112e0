"""Files that are either whole or not there.

Whoever writes a checkpoint in place loses it if the power fails half-way. So: write
beside the target, flush to the disk, then rename. A rename within one folder is atomic
on every platform, so a reader sees the old file or the new one and never half of one.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DiskFullError(OSError):
    """The disk (or the quota) has no room left; the target is as it was before."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success rename it over ``path``.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may keep the name, not the bytes
        os.replace(temporary, path)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"path {str(path)!r} could not be written, the disk is full; free some "
                "space or choose another folder. Nothing was changed."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that no space (or quota) is left, in any library's words.

    safetensors, for one, raises its own exception type and keeps only the text.
    """
    code = getattr(error, "errno", None)
    full = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
    words = ("no space left", "disk full", "file too large", "quota exceeded")
    return code in full or any(word in str(error).lower() for word in words)
