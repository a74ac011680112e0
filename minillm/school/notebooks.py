"""Run the committed notebooks and compare what they print: as CI does it.

    python -m minillm.school.notebooks                 all of them
    python -m minillm.school.notebooks notebooks/01*   some

Nothing is taken from the user's cache: an empty folder becomes the cache, the zoo is
trained into it once, and then two notebooks at a time run with one thread each.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from minillm.school.products import ROOT, TARGETS, products

OPTIONS = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
OPTIONS += ["-n", "2", "--dist", "loadfile", "-p", "minillm.school.nbplugin", "-q"]


def main(arguments: Sequence[str]) -> int:
    """Train the zoo, run notebooks, return the exit status."""
    chosen = [str(Path(path).resolve()) for path in arguments or committed()]
    if not chosen:
        print("There are no notebooks yet.")
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        return train_zoo(cache) or compare(chosen, cache)


def committed(root: Path = ROOT) -> list[Path]:
    """The notebooks that were built with outputs."""
    built = [p.target for p in products(root) if p.executed and p.target.is_file()]
    return sorted(built, key=lambda path: list(TARGETS).index(path.parent.name))


def train_zoo(cache: str) -> int:
    """Train all models into an empty cache; return the exit status."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "minillm", "zoo", "--all"]
    status = subprocess.call(command, cwd=ROOT, env=settings(cache))
    print(f"The zoo took {time.perf_counter() - start:.0f} s.", flush=True)
    return status


def compare(chosen: Sequence[str], cache: str) -> int:
    """Execute notebooks and compare outputs with those they hold, by nbval."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, *chosen]
    return subprocess.call(command, cwd=ROOT, env=settings(cache))


def settings(cache: str) -> dict[str, str]:
    """The environment of a run: one thread, this cache, nothing of an author's own."""
    kept = {k: v for k, v in os.environ.items() if k != "MINILLM_ZOO_SEED"}
    rare = {"TQDM_MININTERVAL": "20"}  # a log keeps every state of a progress bar
    return kept | rare | {"MINILLM_CACHE": cache, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
