"""Start a function in several processes, and never leave one of them behind.

``torchrun`` starts a script on many machines; for a chapter, a test or an exercise we
want ``launch(function, 4)`` and the four results. What can go wrong is the lesson.
Processes that train together wait for one another in every exchange, so when one dies,
the rest wait for ever. Whoever started them must watch, say which one it was and why,
and end the others. Three rules make that possible:

- A worker that fails reports its error *and stays*: if it left, its neighbours would
  fail with "connection closed", and the first error to be read might be theirs.
- A worker that died without a word (killed, out of memory) goes before all reports.
- All are killed in the end, whatever happened, also when Ctrl-C was pressed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

from minillm.errors import require, require_count, require_positive
from minillm.training.distributed import World, leave_world

GRACE = 1.0  # seconds in which a death may still come to light, once an error did


class WorkerFailed(RuntimeError):
    """A worker died, raised an error or took too long; the others were stopped."""


def launch(
    function: Callable, size: int, *arguments: Any, timeout: float = 120.0
) -> list:
    """Run ``function(world, *arguments)`` in processes that can talk to one another.

    Args:
        function: from a module that can be imported, as all that ``pickle`` sends.
        size: how many processes; each computes on one thread, with gloo between them.
        arguments: the same for all of them.
        timeout: seconds from start to end.

    Returns:
        what each of them returned, by rank.

    Raises:
        WorkerFailed: with the rank and the reason; no process is left running.
        ValueError: a size or time that is not positive, a function of a notebook.

    A script must call this below ``if __name__ == "__main__":``, because new processes
    import it (multiprocessing's "spawn", the one way to start that works everywhere).
    """
    require_count(size=size)
    require_positive(timeout=timeout)
    home = sys.modules[function.__module__]
    remedy = "write it to a file with %%writefile and import it"
    ok = hasattr(home, "__file__")
    require(ok, "function", function.__module__, "in a module of its own", remedy)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    try:
        for rank in range(size):
            reading, writing = context.Pipe(duplex=False)
            task = (World(rank, size), store.port, writing, timeout)
            worker = context.Process(target=_work, args=(*task, function, arguments))
            worker.start()
            writing.close()  # or the end of the worker would not end the pipe
            pipes.append(reading)
            workers.append(worker)
        results = _collect(pipes, workers, time.monotonic() + timeout)
        for worker in workers:
            worker.join(GRACE)
        return results
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _work(world: World, port: int, pipe, timeout: float, function, arguments) -> None:
    """What happens in a process: join, compute, report, leave together."""
    # Python would hold Ctrl-C back until gloo returns, which may be never.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore("127.0.0.1", port, timeout=limit)
        about = {"rank": world.rank, "world_size": world.size, "timeout": limit}
        dist.init_process_group("gloo", store=store, **about)
        result = function(world, *arguments)
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        time.sleep(timeout)
        os._exit(1)
    leave_world()


def _end_with_parent() -> None:
    """Whoever started us may be killed himself, and then nobody would end us."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _collect(pipes: list, workers: list, deadline: float) -> list:
    """Wait for all results, or for the first sign that one will not come."""
    size, results = len(pipes), {}
    while len(results) < size:
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = [pipes.index(pipe) for pipe in waiting]
            remedy = "all were stopped; allow more time, or see who waits for whom"
            raise WorkerFailed(f"no result from {late} of {size} in time; {remedy}")
        for pipe in ready:
            rank = pipes.index(pipe)
            with contextlib.suppress(EOFError):
                ok, results[rank] = pipe.recv()
                if ok:
                    continue
            # An error may be the echo of a death: look for the dead one first.
            dead = [rank] if rank not in results else _dead(workers)
            if dead:
                workers[dead[0]].join(GRACE)
                raise WorkerFailed(_obituary(dead[0], size, workers[dead[0]].exitcode))
            raise WorkerFailed(f"process {rank} of {size} failed:\n{results[rank]}")
    return [results[rank] for rank in range(size)]


def _dead(workers: list) -> list[int]:
    """The ranks of those that ended with an error within the time of grace."""
    sentinels = [worker.sentinel for worker in workers]
    ended = wait(sentinels, timeout=GRACE)
    return [sentinels.index(s) for s in ended if workers[sentinels.index(s)].exitcode]


def _obituary(rank: int, size: int, code: int | None) -> str:
    how = f"with exit code {code}"
    if code is not None and code < 0:
        how = f"by signal {signal.Signals(-code).name}"
    return f"process {rank} of {size} ended {how}, without a result; all were stopped"
