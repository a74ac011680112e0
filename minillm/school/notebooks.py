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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("notebooks", "solutions")
OPTIONS = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
OPTIONS += ["-n", "2", "--dist", "loadfile", "-p", "no:doctest", "--tb=short", "-q"]


def main(arguments: Sequence[str]) -> int:
    """Train the zoo, run notebooks, return pytest's exit status."""
    chosen = list(arguments) or [str(path) for path in committed()]
    if not chosen:
        print("There are no notebooks yet.")
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        settings = os.environ | {"MINILLM_CACHE": cache, "OMP_NUM_THREADS": "1"}
        here = {"env": settings, "cwd": ROOT}
        zoo = [sys.executable, "-m", "minillm", "zoo", "--all"]
        status = subprocess.call(zoo, **here)
        if status == 0:
            pytest = [sys.executable, "-m", "pytest", *OPTIONS, *chosen]
            status = subprocess.call(pytest, **here)
        return status


def committed(root: Path = ROOT) -> list[Path]:
    """The notebooks that were built with outputs."""
    folders = (root / folder for folder in FOLDERS)
    return sorted(path for folder in folders for path in folder.glob("[0-9]*.ipynb"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
