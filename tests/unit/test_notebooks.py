"""Notebooks in real kernels: built, compared by nbval, and held to their budgets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from minillm.school import build as build_module
from minillm.school import notebooks
from minillm.school.build import build
from minillm.school.products import differs, products

ROOT = Path(__file__).resolve().parents[2]
HEADER = """# %% [markdown]
# # Why?
#
# CPU 2 cores · ~9 s · < 1 GB
"""
CELL = "\n# %%\n"


def course(root: Path, *cells: str, header: str = HEADER) -> Path:
    """Write the source of a chapter with these cells; return the notebook's path."""
    source = root / "notebooks" / "src" / "01_why.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(header + "".join(CELL + cell for cell in cells), encoding="utf-8")
    return root / "notebooks" / "01_why.ipynb"


def built(root: Path) -> nbformat.NotebookNode:
    """Build the only notebook there is, and read it."""
    (product,) = products(root)
    build(product)
    return nbformat.read(product.target, as_version=4)


def compared(*paths: Path | str) -> tuple[int, str]:
    """Let nbval run notebooks as CI does; return status and words."""
    options = [*notebooks.OPTIONS, "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options]
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    command += map(str, paths)
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- the build


def test_a_notebook_is_executed_and_keeps_no_trace_of_the_machine(tmp_path):
    talks = 'import sys\nprint("out")\nprint("err", file=sys.stderr)\n1 + 1'
    course(tmp_path, talks)
    made = built(tmp_path)
    outputs = made.cells[1].outputs
    assert [output.output_type for output in outputs] == ["stream", "execute_result"]
    assert outputs[0].text == "out\n" and made.cells[1].execution_count == 1
    assert [dict(cell.metadata) for cell in made.cells] == [{}, {}]
    assert differs(products(tmp_path)[0]) is None
    assert len(made.cells) == 2  # what asked for the time is gone


def test_built_again_it_is_the_same_byte_for_byte(tmp_path):
    path = course(tmp_path, "print(1)")
    built(tmp_path)
    before = path.read_bytes()
    built(tmp_path)
    assert path.read_bytes() == before
    assert b"\r" not in before and before.endswith(b"}\n")


def test_a_cell_that_fails_leaves_the_committed_notebook_as_it_was(tmp_path):
    path = course(tmp_path, "print(1)")
    built(tmp_path)
    before = path.read_bytes()
    course(tmp_path, "print(1)", "1 / 0")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        built(tmp_path)
    assert path.read_bytes() == before


def test_a_kernel_has_one_thread_and_stands_where_the_notebook_lies(tmp_path):
    asks = "import os, torch\nprint(torch.get_num_threads(), os.path.basename('.'))"
    where = "print(os.path.basename(os.getcwd()))"
    course(tmp_path, asks, where)
    made = built(tmp_path)
    assert made.cells[1].outputs[0].text == "1 .\n"
    assert made.cells[2].outputs[0].text == "notebooks\n"


def test_the_command_tells_the_time_beside_the_budget_and_all_faults(tmp_path, capsys):
    course(tmp_path, "print(0x1)")
    assert build_module.main(["01"], tmp_path) == 1
    words = capsys.readouterr().out
    assert "notebooks/01_why.ipynb: " in words and " s of processor time\n" in words
    assert "notebooks/01_why.ipynb: there is no section 'References'" in words


def test_the_command_names_the_cell_that_failed(tmp_path, capsys):
    course(tmp_path, "1 / 0")
    assert build_module.main([], tmp_path) == 1
    assert "notebooks/01_why.ipynb: " in (words := capsys.readouterr().err)
    assert "ZeroDivisionError" in words


def test_check_executes_nothing(tmp_path, capsys):
    path = course(tmp_path, "1 / 0")
    assert build_module.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "notebooks/01_why.ipynb has not been built\n"
    assert not path.exists()


def test_check_praises_what_is_right(tmp_path, capsys):
    assert build_module.main(["--check"], tmp_path) == 0
    assert capsys.readouterr().out == "0 notebooks are as they should be.\n"


# --- the comparison: one call of nbval for several notebooks, as each takes seconds


def chapters(root: Path, cells: dict[str, list[str]], header: str = HEADER) -> dict:
    """Build a notebook of each name; return their paths."""
    paths = {}
    for name, code in cells.items():
        paths[name] = course(root / name, *code, header=header)
        built(root / name)
    return paths


def failed(words: str) -> set[str]:
    """The notebooks of which a cell failed."""
    return set(re.findall(r"^FAILED \S*?(\w+)/notebooks/01_why", words, re.MULTILINE))


def told(words: str) -> dict[str, str]:
    """What the summary says of each notebook, without the seconds that it took."""
    lines = re.findall(r"(\w+)/notebooks/01_why\S+: \d+ s of (.*)", words)
    return dict(lines)


BUSY = "import time\nwhile time.process_time() < {}:\n    pass"
NOISY = "import os, sys\nprint(os.urandom(9), file=sys.stderr)"
SHOWS = "from IPython.display import Image\nImage(os.urandom(99), format='png')"


@pytest.mark.slow
def test_good_notebooks_pass_even_if_they_are_noisy_or_a_little_slow(tmp_path):
    paths = chapters(tmp_path, {"good": ["print(1)"], "noisy": [NOISY, SHOWS]})
    slow = HEADER.replace("~9 s", "~2 s")
    paths |= chapters(tmp_path, {"slow": [BUSY.format(4)]}, slow)
    status, words = compared(*paths.values())
    assert status == 0, words
    expected = {"good": "9 s", "noisy": "9 s", "slow": "2 s  over its budget"}
    assert told(words) == expected


@pytest.mark.slow
def test_outputs_that_are_not_what_the_code_prints_fail(tmp_path):
    two = ["print(0.63)", "print(2)"]
    paths = chapters(tmp_path, {"good": two, "stale": two, "lost": two, "dead": two})
    replaced(paths["stale"], "0.63\\n", "0.64\\n")
    replaced(paths["dead"], '"print(2)"', '"import os; os._exit(1)"')
    lost = nbformat.read(paths["lost"], as_version=4)
    lost.cells[1].outputs = []
    paths["lost"].write_text(nbformat.writes(lost), encoding="utf-8")
    timeout = "--nbval-cell-timeout=15"  # for so long it waits for a dead kernel
    status, words = compared(*paths.values(), timeout)
    assert status == 1
    assert failed(words) == {"stale", "lost", "dead"}


@pytest.mark.slow
def test_a_budget_that_is_missing_or_far_exceeded_fails_though_all_cells_pass(tmp_path):
    far = HEADER.replace("~9 s", "~1 s")
    paths = chapters(tmp_path, {"far": [BUSY.format(5)]}, far)
    paths |= chapters(tmp_path, {"none": ["print(1)"]}, HEADER.partition("# CPU")[0])
    status, words = compared(*paths.values())
    assert "2 passed" in words and status == 1, words
    assert told(words) == {
        "far": "1 s  FAR over its budget",
        "none": "0 s  has no budget",
    }


def test_the_time_of_children_counts(tmp_path):
    busy = "import time\nwhile time.process_time() < 2:\n    pass"
    call = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])"
    course(tmp_path, f"{call};")
    (product,) = products(tmp_path)
    if os.name == "nt":
        pytest.skip("Windows does not tell what children took")
    assert build(product) > 2


# --- the command that CI calls


def test_without_notebooks_it_says_so_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "committed", lambda: [])
    monkeypatch.setattr(notebooks.subprocess, "call", None)  # nothing is to be run
    assert notebooks.main([]) == 0
    assert capsys.readouterr().out == "There are no notebooks yet.\n"


@pytest.fixture
def calls(monkeypatch) -> list[tuple[list[str], dict]]:
    """The commands that would have been run, with their environments."""
    made = []

    def call(command, cwd, env):
        folder = Path(env["MINILLM_CACHE"])
        made.append((command, env | {"cache is empty": not list(folder.iterdir())}))
        return int("fail" in os.environ.get("PLAN", "") and "zoo" in command)

    monkeypatch.setattr(notebooks.subprocess, "call", call)
    return made


def test_the_zoo_is_trained_into_an_empty_cache_before_notebooks_run(
    calls, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINILLM_CACHE", str(ROOT))
    monkeypatch.setenv("MINILLM_ZOO_SEED", "1")
    assert notebooks.main(["notebooks/01_why.ipynb"]) == 0
    (zoo, first), (pytest_, second) = calls
    assert zoo[1:] == ["-m", "minillm", "zoo", "--all"]
    assert pytest_[-1] == str(Path("notebooks/01_why.ipynb").resolve())
    assert pytest_[pytest_.index("-n") + 1] == "2"
    assert first["cache is empty"] and first["MINILLM_CACHE"] == second["MINILLM_CACHE"]
    assert first["OMP_NUM_THREADS"] == second["OMP_NUM_THREADS"] == "1"
    assert "MINILLM_ZOO_SEED" not in first | second
    assert not Path(first["MINILLM_CACHE"]).exists()  # it is gone afterwards


def test_a_zoo_that_fails_fails_all(calls, monkeypatch):
    monkeypatch.setenv("PLAN", "fail")
    assert notebooks.main(["notebooks/01_why.ipynb"]) == 1
    assert len(calls) == 1


def test_all_committed_notebooks_and_solutions_are_run(tmp_path):
    course(tmp_path, "print(1)")
    for folder in ("solutions", "exercises"):
        source = tmp_path / "solutions" / "src" / "01_why.py"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(HEADER, encoding="utf-8")
        (tmp_path / folder / "01_why.ipynb").parent.mkdir(exist_ok=True)
        (tmp_path / folder / "01_why.ipynb").touch()
    names = [path.parent.name for path in notebooks.committed(tmp_path)]
    assert names == ["solutions"]  # the notebook has not been built yet
    (tmp_path / "notebooks" / "01_why.ipynb").touch()
    names = [path.parent.name for path in notebooks.committed(tmp_path)]
    assert names == ["notebooks", "solutions"]
