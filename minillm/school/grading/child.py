"""The child process: holds one answer, takes questions, knows no solution.

``python -m minillm.school.grading.child`` answers over its standard input and output.
With ``--warm FD`` it imports torch once and then forks a child per answer, each with a
socket of its own: a fork takes 14 ms, an import of torch more than a second.

What an answer prints goes nowhere near the wire: its standard streams are replaced
before it is loaded, and only the first characters are kept.
"""

import contextlib
import io
import json
import linecache
import os
import signal
import socket
import sys
import types
from pathlib import Path
from typing import BinaryIO

import torch

from minillm.school.grading.inprocess import InProcess, in_words
from minillm.school.grading.subject import AnswerError
from minillm.school.grading.wire import receive, send

FILE = "<answer>"
QUESTIONS = ("call", "grad", "make", "method", "state")


class FirstWords(io.TextIOBase):
    """A stream that keeps the first characters and forgets the rest.

    >>> stream = FirstWords(5); print("hello world", file=stream); stream.kept
    'hello'
    """

    def __init__(self, most: int):
        self.most, self.kept = most, ""

    def write(self, text: str) -> int:
        self.kept += text[: self.most - len(self.kept)]
        return len(text)


def serve(reader: BinaryIO, writer: BinaryIO, limits: dict) -> None:
    """Load the answer that comes first, then answer questions until the stream ends."""
    words = FirstWords(limits["printed"])
    sys.stdout = sys.stderr = words
    _limit(limits)
    subject = InProcess({})
    send(writer, "ready")
    while True:
        try:
            request = receive(reader)
        except EOFError:
            return
        reply = {"printed": ""}
        try:
            if request["ask"] == "load":
                subject = InProcess(load(request["source"]))
                reply["value"] = None
            else:
                ask = getattr(subject, QUESTIONS[QUESTIONS.index(request["ask"])])
                reply["value"] = ask(*request["args"], **request["kwargs"])
        except BaseException as error:  # also what a hostile answer raises of its own
            known = error if isinstance(error, AnswerError) else in_words(error)
            reply["error"] = [known.kind, known.sentence]
        reply["printed"], words.kept = words.kept, ""
        send(writer, reply)


def load(source: str) -> dict:
    """Run an answer's source as a module; return its names."""
    module = types.ModuleType("answer")
    module.__file__ = FILE
    sys.modules["answer"] = module
    # so that a traceback can quote the line, and inspect.getsource works
    linecache.cache[FILE] = (len(source), None, source.splitlines(True), FILE)
    exec(compile(source, FILE, "exec"), module.__dict__)
    return module.__dict__


def _limit(limits: dict) -> None:
    """Cap memory, CPU time and file size, where the platform can (not Windows)."""
    try:
        import resource
    except ImportError:
        return
    caps = {"RLIMIT_CPU": limits["cpu_seconds"], "RLIMIT_CORE": 0}
    caps["RLIMIT_FSIZE"] = limits["file_mb"] << 20
    with contextlib.suppress(OSError, ValueError):  # Linux says what is in use already
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * os.sysconf("SC_PAGE_SIZE")
        caps["RLIMIT_AS"] = used + (limits["memory_mb"] << 20)
    for name, most in caps.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (most, most))


def _warm(control: socket.socket) -> None:
    """Fork on demand: "start" comes with a socket, "end" kills who has it."""
    pid = 0
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            return
        order = json.loads(message)
        if order["do"] == "start":
            pid = os.fork()
            if pid == 0:
                control.close()
                _child(socket.socket(fileno=sockets[0]), order)
            os.close(sockets[0])
            control.sendall(json.dumps({"pid": pid}).encode())
        else:
            control.sendall(json.dumps({"status": _end(pid)}).encode())


def _child(wire: socket.socket, order: dict) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(order["folder"])
        stream = wire.makefile("rwb")
        serve(stream, stream, order["limits"])
        status = 0
    finally:
        os._exit(status)  # never back into the server's loop


def _end(pid: int) -> int:
    """Kill a child and all it started; only we can know that the number is still its.

    Returns:
        Its exit status; negative is the signal that ended it before.
    """
    done, status = os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    if not done:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _close_standard_streams() -> None:
    """Point what prints and reads below Python at nothing, C libraries included."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def main(arguments: list[str]) -> None:
    """Serve as a child, or as the parent of many."""
    torch.set_num_threads(1)
    if arguments[0] == "--warm":
        _close_standard_streams()
        _warm(socket.socket(fileno=int(arguments[1])))
        return
    order = json.loads(arguments[0])
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    _close_standard_streams()
    os.chdir(order["folder"])
    serve(reader, writer, order["limits"])


if __name__ == "__main__":
    main(sys.argv[1:])
