"""What every benchmark needs: one thread, fair turns, and a result that says where.

Two programs timed one after the other meet two different machines: a neighbour wakes
up, a clock slows down. So the rivals take turns (A B C, A B C, ...), the clock counts
the CPU seconds of this process instead of the time on the wall, and a ratio is the
median of the ratios within each turn, where most of the disturbance cancels.

Importing this module is what limits everything to one thread.
"""

import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

from minillm.files import atomic_write
from minillm.school.machine import processor_name

for _name in ("OMP", "MKL", "OPENBLAS", "RAYON"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "torch" in sys.modules:  # torch read its environment when it was imported
    sys.modules["torch"].set_num_threads(1)

RESULTS = Path(__file__).parent / "results"


def keep_memory() -> None:
    """Let Linux's allocator reuse large blocks, as ``course.py run`` does.

    Otherwise some rivals, by the luck of their addresses, get fresh pages from the
    system at every step and pay up to a third of their time for having them zeroed.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(M_TRIM_THRESHOLD, 2**30)


keep_memory()


def interleaved(
    rivals: dict[str, Callable[[], object]],
    repeats: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict]:
    """Time each rival ``repeats`` times in turns: median, all seconds, ratio to first.

    A ratio above 1 means slower than the first rival. Setup that must not be timed
    belongs outside the callables; warm them up first if the first call is special.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    base = seconds[next(iter(rivals))]
    return {
        name: {
            "median_s": round(median(took), 4),
            "seconds": [round(s, 4) for s in took],
            "ratio": round(median(a / b for a, b in zip(took, base, strict=True)), 3),
        }
        for name, took in seconds.items()
    }


def machine(*packages: str) -> dict[str, object]:
    """What a reader needs to judge the numbers; no host name, no user, no path."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def write_result(name: str, result: dict, *packages: str) -> Path:
    """Write ``results/NAME.json``: the machine first, then the result."""
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(*packages), **result}, indent=1)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def print_table(title: str, timings: dict[str, dict]) -> None:
    """One line for each rival: median CPU seconds and ratio to the first."""
    print(f"\n{title}")
    for name, row in timings.items():
        print(f"  {name:<24}{row['median_s']:>9.3f} s   x {row['ratio']:.2f}")
