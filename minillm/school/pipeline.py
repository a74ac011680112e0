"""A run: its folder, its settings, its table, and the clock of each stage.

The main job is a list of stages. Each stage is timed, adds rows to one table (stage,
metric, truth or yardstick, measured, seconds) and leaves its results in the run's
folder. What a stage does is not known here.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minillm.errors import require
from minillm.files import atomic_write

HEADER = ("stage", "metric", "truth or yardstick", "measured", "seconds")


@dataclass
class Run:
    """One pass through the pipeline.

    Args:
        folder: where everything goes.
        settings: what decides the outcome; a run is resumed only with equal settings.
        rows: of the table, without the seconds.
        results: what stages measured, unrounded, by name.
    """

    folder: Path
    settings: dict
    rows: list[tuple[str, ...]] = field(default_factory=list)
    results: dict = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        """Announce a stage and time it."""
        print(f"\n{name}: {doing}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def add(self, stage: str, metric: str, yardstick: str, measured: str) -> None:
        """Add a row to the table."""
        self.rows.append((stage, metric, yardstick, measured))

    def table(self) -> list[tuple[str, ...]]:
        """All rows, each stage's seconds in its first one."""
        told: set[str] = set()
        rows = []
        for stage, *cells in self.rows:
            seconds = f"{self.seconds.get(stage, 0):.0f}" if stage not in told else ""
            rows.append((stage if stage not in told else "", *cells, seconds))
            told.add(stage)
        return rows

    @property
    def _file(self) -> Path:
        return self.folder / "run.json"

    def save(self, finished: bool) -> None:
        """Remember the settings, so that an interrupted run is known again."""
        state = {"settings": self.settings, "finished": finished}
        state |= {"rows": self.table(), "results": self.results}
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")


def open_run(folder: str | Path, options, fresh: bool = False) -> tuple[Run, bool]:
    """Begin a run in a folder, or go on with the one that was interrupted there.

    Args:
        folder: of the run.
        options: a dataclass; what the user asked for.
        fresh: begin anew whatever is there.

    Returns:
        the run, and whether it goes on with an interrupted one.

    Raises:
        ValueError: the folder holds an unfinished run of other options.
    """
    folder, asked = Path(folder), asdict(options)
    run = Run(folder, asked)
    state = _read(folder / "run.json")
    if fresh or state is None or state.get("finished"):
        return run, False
    then = {name: state["settings"].get(name) for name in asked}
    changed = {k: (then[k], asked[k]) for k in asked if then[k] != asked[k]}
    remedy = "give the same options to go on, --fresh to discard it, or another --out"
    same = "without an unfinished run of other options (then, now)"
    require(not changed, f"folder {str(folder)!r}", changed, same, remedy)
    run.settings = state["settings"]
    return run, True


def _read(path: Path) -> dict | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(state, dict) and isinstance(state.get("settings"), dict)
    return state if whole else None
