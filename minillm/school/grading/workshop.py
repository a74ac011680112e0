"""Where child processes come from, and what they may use.

On Linux one server imports torch and then forks a child per answer. Elsewhere each
child is a process that imports torch for itself: Windows has no forks, and on macOS
those of a process that has loaded torch may crash.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minillm.school.grading.wire import receive

PACKAGE_HOME = str(Path(__file__).resolve().parents[3])
KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
ISOLATION = "none: a child process with the rights of whoever grades; limits on "


@dataclass(frozen=True)
class Limits:
    """What an answer may use.

    Args:
        seconds: by the clock, for each call.
        load_seconds: by the clock, for the imports and constants of an answer.
        memory_mb: beyond what torch itself takes; Linux only.
        cpu_seconds: over a child's whole life; not on Windows.
        file_mb: the largest file that it may write; not on Windows.
        printed: characters kept of what a call prints.
        deaths: children that may die before an answer is given up.
    """

    seconds: float = 5.0
    load_seconds: float = 20.0
    memory_mb: int = 1024
    cpu_seconds: int = 60
    file_mb: int = 16
    printed: int = 500
    deaths: int = 3


def isolation() -> str:
    """What protects the grader on this machine, for the result files."""
    linux, windows = sys.platform.startswith("linux"), os.name == "nt"
    more = "" if windows else ", processor time, file size"
    memory = ", memory" if linux else "; no limit on memory here"
    return f"{ISOLATION}time{more}{memory}"


class Child:
    """A running child: what to read, what to write, and how to end it."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, kill: Callable[[], None]):
        self.reader, self.writer = reader, writer
        self._kill: Callable[[], None] | None = kill
        self._lock = threading.Lock()

    def end(self) -> None:
        """End it, from any thread and at most once; a blocked read returns."""
        with self._lock:
            kill, self._kill = self._kill, None
            if kill:
                kill()

    def close(self) -> None:
        """End it and give back what it held."""
        self.end()
        for stream in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                stream.close()


class Workshop:
    """Where children come from, one at a time; use it in a ``with`` statement.

    Args:
        warm: fork from a process that has imported torch; ``None`` is on Linux only.
    """

    def __init__(self, warm: bool | None = None):
        self.warm = sys.platform.startswith("linux") if warm is None else warm
        self.server: subprocess.Popen | None = None

    def __enter__(self) -> "Workshop":
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_server()
        self._home.cleanup()

    def start(self, limits: Limits) -> Child:
        """A new child, in a new folder."""
        folder = tempfile.mkdtemp(dir=self._home.name)
        order = {"limits": asdict(limits), "folder": folder}
        child = self._fork(order) if self.warm else self._spawn(order)
        receive(child.reader)  # it is ready: importing torch is not the answer's time
        return child

    def _spawn(self, order: dict) -> Child:
        pipe = subprocess.PIPE
        process = self._python(json.dumps(order), stdin=pipe, stdout=pipe)

        def end() -> None:
            _kill_group(process.pid)  # not reaped yet, so the number is still its
            process.kill()
            process.wait()

        return Child(process.stdout, process.stdin, end)

    def _fork(self, order: dict) -> Child:
        ours, theirs = socket.socketpair()
        try:
            reply = self._order(order | {"do": "start"}, theirs.fileno())
        except (OSError, ValueError):  # an answer may have killed the server: once more
            self._stop_server()
            reply = self._order(order | {"do": "start"}, theirs.fileno())
        theirs.close()
        stream = ours.makefile("rwb")

        def end() -> None:
            try:
                self._order({"do": "end"})
            except (OSError, ValueError):
                self._stop_server()
                _kill_group(reply["pid"])
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # grandchildren may hold the other end

        return Child(stream, stream, end)

    def _order(self, order: dict, *sockets: int) -> dict:
        """Tell the server, starting it if need be; return its answer."""
        if self.server is None:
            self._control, theirs = socket.socketpair()
            self._control.settimeout(60)  # importing torch takes seconds, not minutes
            number = theirs.fileno()
            self.server = self._python("--warm", str(number), pass_fds=[number])
            theirs.close()
        socket.send_fds(self._control, [json.dumps(order).encode()], sockets)
        return json.loads(self._control.recv(65536))

    def _python(self, *arguments: str, **streams: Any) -> subprocess.Popen:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kept |= {"PYTHONPATH": PACKAGE_HOME, "OMP_NUM_THREADS": "1"}
        kept |= {"HOME": self._home.name, "PYTHONUTF8": "1"}
        # -P: no module is taken from the folder that answers may write to.
        command = [
            sys.executable,
            "-P",
            "-m",
            "minillm.school.grading.child",
            *arguments,
        ]
        quiet = {"stderr": subprocess.DEVNULL, "start_new_session": True}
        return subprocess.Popen(
            command, cwd=self._home.name, env=kept, **(quiet | streams)
        )

    def _stop_server(self) -> None:
        if self.server is not None:
            self._control.close()
            self.server.kill()
            self.server.wait()
            self.server = None


def _kill_group(group: int) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
