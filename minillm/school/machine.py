"""The machine under the course: Python, platform, processors, memory, disk, threads.

Each check is a function that takes what it judges, where that can be given, and returns
a finding. Only the standard library is needed, but for the matrix product at the end.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from minillm.school.findings import Finding, note, ok, problem

CHECKOUT = Path(__file__).resolve().parents[2]
LITTLE_DISK, LITTLE_MEMORY = 2.0, 4.0  # gigabytes


def check_python(version: tuple[int, int]) -> Finding:
    """The course is tested with Python 3.11 to 3.13.

    >>> check_python((3, 10)).level
    'problem'
    """
    words = f"Python {version[0]}.{version[1]} ({platform.python_implementation()})"
    if (3, 11) <= tuple(version) <= (3, 13):
        return ok(f"{words}, {sys.executable}")
    return problem(
        f"{words} is not tested with this course",
        "install Python 3.13 from https://www.python.org/downloads/",
    )


def check_platform() -> Finding:
    """Whether torch has wheels here; course.py knows, where there is a checkout."""
    words = platform.platform()
    script = CHECKOUT / "course.py"
    if not script.exists():
        return ok(words)
    spec = importlib.util.spec_from_file_location("minillm_course", script)
    course = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(course)
    sentence = course.platform_problem(course.machine_facts())
    return problem(words, sentence) if sentence else ok(words)


def check_processors() -> Finding:
    """Processors that exist and those that this process may use."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    return ok(f"{os.cpu_count()} processors, {usable} usable by this process")


def processor_name() -> str:
    """What the processor calls itself."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or "unknown"


def memory_gigabytes() -> float | None:
    """The machine's memory, or None where the standard library cannot tell."""
    if sys.platform == "win32":
        return windows_memory_gigabytes()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError):
        return None


def windows_memory_gigabytes() -> float:
    """The memory as Windows reports it, from the 64-byte MEMORYSTATUSEX."""
    status = (ctypes.c_uint64 * 8)(64)  # the first four bytes are the length
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status[1] / 1e9


def check_memory(gigabytes: float | None) -> Finding:
    """The notebooks need less than 1 GB each; two run at a time, with a browser.

    >>> check_memory(2.0).level, check_memory(16.0).level
    ('note', 'ok')
    """
    if gigabytes is None:
        return note("memory: this system does not say")
    words = f"{gigabytes:.1f} GB of memory"
    if gigabytes >= LITTLE_MEMORY:
        return ok(words)
    return note(words, "close other programs; run one notebook at a time")


def check_disk(folder: Path | None = None) -> Finding:
    """Room for checkpoints and trained models, where the user is working."""
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    words = f"{free:.1f} GB free at {folder}"
    if free >= LITTLE_DISK:
        return ok(words)
    return problem(words, f"free some space: at least {LITTLE_DISK:.0f} GB")


def check_threads(environment: dict[str, str]) -> list[Finding]:
    """Settings of OpenMP and MKL, which decide speed and the last digits.

    >>> [finding.level for finding in check_threads({"KMP_DUPLICATE_LIB_OK": "TRUE"})]
    ['ok', 'problem']
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRITON_INTERPRET")
    values = [f"{name}={environment.get(name, 'not set')}" for name in names]
    findings = [ok(", ".join(values))]
    if environment.get("KMP_DUPLICATE_LIB_OK"):
        text = "KMP_DUPLICATE_LIB_OK is set: two OpenMP runtimes can give wrong results"
        remedy = "unset it and use an environment whose packages all come from pip"
        findings.append(problem(text, remedy))
    return findings


def check_arithmetic(size: int = 512, repeats: int = 8) -> Finding:
    """Multiply two matrices: right against float64, and how fast."""
    try:
        import torch
    except Exception:  # reported by check_torch
        return note("arithmetic: not tried without torch")
    left, right = torch.rand(2, size, size, generator=torch.Generator().manual_seed(0))
    product = left @ right  # the first call warms up and is not timed
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    seconds = time.perf_counter() - start
    error = (product - left.double() @ right.double()).abs().max() / product.max()
    speed = 2 * size**3 * repeats / seconds / 1e9
    return judge_arithmetic(float(error), speed)


def judge_arithmetic(error: float, gigaflops: float) -> Finding:
    """A relative error above 1e-4 in float32 means a broken library.

    >>> judge_arithmetic(1e-7, 50.0).text
    'arithmetic: float32 matmul is right, 50 GFLOP/s'
    """
    if error < 1e-4:
        return ok(f"arithmetic: float32 matmul is right, {gigaflops:.0f} GFLOP/s")
    return problem(
        f"arithmetic: float32 matmul is off by {error:.1e}",
        "reinstall torch: delete the environment and run `python course.py run`",
    )
