"""Studies: experiments too long for a notebook, run once and kept with their proof.

A study is a file ``studies/NN_name.py`` that says which arms it compares and how one
run of one arm goes. This module runs all arms with all seeds, in an order that no arm
profits from, and keeps what came out in ``studies/results/NN_name.json``, together with
the settings, the processor time of each run, the machine, and a key of the code that
made it. If the code has changed since, the study is stale, and says so.

    python studies/01_optimizers.py             run it, or go on with it
    python -m minillm.school.studies            which results are stale?
    python -m minillm.school.studies --run      run all that are
"""

import json
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from tqdm.auto import tqdm

from minillm.errors import require, require_file
from minillm.files import atomic_write
from minillm.school.code_key import code_key
from minillm.school.machine import processor_name

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@dataclass(frozen=True)
class Study:
    """The results of a study.

    Args:
        question: what it asks, in a sentence.
        runs: one dictionary a run: "arm", "seed", "cpu_seconds", and what it measured.
        settings: of each arm.
        machine: on which it ran.
        key: of the code that made it.

    >>> runs = [{"arm": "large", "seed": seed, "loss": 1.0 + seed} for seed in range(3)]
    >>> study = Study("Is it good?", runs, {"large": {"C": 64}}, "a laptop", "a key")
    >>> study.mean("large", "loss"), study.spread("large", "loss")
    (2.0, 1.0)
    """

    question: str
    runs: list[dict]
    settings: dict[str, dict]
    machine: str
    key: str

    def values(self, arm: str, measure: str) -> list[float]:
        """What all seeds of an arm measured.

        Raises:
            KeyError: no such arm or measure.
        """
        found = [run[measure] for run in self.runs if run["arm"] == arm]
        if not found:
            raise KeyError(f"no arm {arm!r} among {sorted(self.settings)}")
        return found

    def mean(self, arm: str, measure: str) -> float:
        """The mean over seeds."""
        return fmean(self.values(arm, measure))

    def spread(self, arm: str, measure: str) -> float:
        """The standard deviation over seeds."""
        return stdev(self.values(arm, measure))


def run_study(
    file: str | Path,
    question: str,
    arms: Mapping[str, dict],
    seeds: Sequence[int],
    run: Callable[..., dict],
) -> Study:
    """Run every arm with every seed and keep the results; go on where it was stopped.

    Seeds are the outer loop: if it is stopped, all arms have had the same seeds.

    Args:
        file: the study, ``__file__``.
        question: what it asks.
        arms: the settings of each, by name.
        seeds: at least three.
        run: (seed, **settings) -> what it measured, as plain numbers and lists.

    Raises:
        ValueError: no arms, fewer than three different seeds.
    """
    require(len(arms) > 0, "arms", arms, "at least one", "name what is compared")
    remedy = "a difference between two arms needs a spread to be compared with"
    require(len(set(seeds)) >= 3, "seeds", seeds, "at least three", remedy)
    file, key = Path(file).resolve(), code_key(Path(file).resolve())
    torch.set_num_threads(1)  # processor time of one thread is what is compared
    head = {"question": question, "settings": dict(arms), "key": key}
    partial = result_file(file).with_suffix(".partial.json")
    todo = [(arm, seed) for seed in seeds for arm in arms]
    runs = [r for r in _begun(partial, head) if (r["arm"], r["seed"]) in todo]
    for arm, seed in tqdm(todo, unit="run"):
        if not any((r["arm"], r["seed"]) == (arm, seed) for r in runs):
            start = time.process_time()
            measured = run(seed, **arms[arm])
            took = round(time.process_time() - start, 1)
            runs.append({"arm": arm, "seed": seed, "cpu_seconds": took} | measured)
            _write(partial, head | {"runs": runs})
    _write(result_file(file), head | {"machine": machine(), "runs": runs})
    partial.unlink(missing_ok=True)
    return load_study(file)


def load_study(file: str | Path) -> Study:
    """Read the results of a study, for example ``load_study("01_optimizers")``.

    Raises:
        FileNotFoundError: it has not been run.
    """
    path = result_file(file)
    require_file(path, f"run `python studies/{path.stem}.py` first")
    return Study(**json.loads(path.read_text(encoding="utf-8")))


def result_file(file: str | Path) -> Path:
    """Where the results of a study lie.

    >>> result_file("studies/01_optimizers.py") == result_file("01_optimizers")
    True
    """
    return STUDIES / "results" / f"{Path(file).stem}.json"


def is_stale(file: str | Path) -> bool:
    """Whether the code behind a study has changed since it was run, or it never was.

    Args:
        file: the study itself, for its code is read.
    """
    kept = result_file(file)
    return not kept.is_file() or load_study(file).key != code_key(file)


def machine() -> str:
    """Processor, number of its cores, and the versions that matter."""
    cores, versions = os.cpu_count(), f"torch {torch.__version__}"
    return f"{processor_name()}, {cores} cores; {versions}, {platform.system()}"


def _begun(partial: Path, head: dict) -> list[dict]:
    """Runs of an interrupted study, if its code and settings are still the same."""
    wanted = json.loads(json.dumps(head))
    try:
        kept = json.loads(partial.read_text(encoding="utf-8"))
        return kept["runs"] if all(kept[n] == wanted[n] for n in wanted) else []
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or damaged
        return []


def _write(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(run_stale: bool = False) -> None:
    """Say which studies are stale; run them if asked to."""
    for file in sorted(STUDIES.glob("[0-9]*.py")):
        stale, known = is_stale(file), result_file(file).is_file()
        changed = "stale: the code has changed since" if known else "never run"
        state = changed if stale else "as the code is"
        print(f"studies/{file.name}: {state}", flush=True)
        if stale and run_stale:
            runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    main(run_stale="--run" in sys.argv[1:])
