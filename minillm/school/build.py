"""Build the notebooks: sources in, executed notebooks and exercises out.

    python -m minillm.school.build             build all
    python -m minillm.school.build 01 13       build two chapters
    python -m minillm.school.build --check     are the committed ones as their sources?

    notebooks/src/NN_name.py    notebooks/NN_name.ipynb    executed from top to bottom
    solutions/src/NN_name.py    solutions/NN_name.ipynb    executed
                                exercises/NN_name.ipynb    solutions taken out, not run

``--check`` executes nothing and compares all but outputs, so it finds every notebook
that was edited by hand. That outputs are as they should be is nbval's business
(``python -m minillm.school.notebooks``).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from minillm.errors import require
from minillm.files import atomic_write
from minillm.school import cells
from minillm.school.budget import SPENT, budget_of, judged

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900  # seconds for a cell: the first one may have to train a model of the zoo


class Product(NamedTuple):
    """A notebook that is built, and what it is built from."""

    source: Path
    target: Path

    def skeleton(self) -> NotebookNode:
        """All of it that does not have to be executed."""
        stripped = self.target.parent.name == "exercises"
        return (cells.exercises if stripped else cells.notebook)(self.source)

    @property
    def executed(self) -> bool:
        """Whether it has outputs."""
        return self.target.parent.name != "exercises"


def products(root: Path = ROOT, chapters: Sequence[str] = ()) -> list[Product]:
    """Everything that is built, in the order of chapters, or what is built of some.

    Raises:
        ValueError: a chapter that has no source.
    """
    found = []
    targets = {"notebooks": ("notebooks",), "solutions": ("solutions", "exercises")}
    for folder, built in targets.items():
        for source in sorted((root / folder / "src").glob("[0-9]*.py")):
            names = [root / target / f"{source.stem}.ipynb" for target in built]
            found += [Product(source, name) for name in names]
    known = {product.source.name[:2] for product in found}
    for chapter in chapters:
        need = f"one of {', '.join(sorted(known))}"
        require(chapter in known, "chapter", chapter, need, "or write its source")
    return [p for p in found if not chapters or p.source.name[:2] in chapters]


def differs(product: Product) -> str | None:
    """Why a committed notebook is not what its source says; None if it is.

    >>> differs(Product(Path("src/none.py"), Path("none.ipynb")))
    'none.ipynb has not been built'
    """
    name = product.target.name
    if not product.target.is_file():
        return f"{name} has not been built"
    ours = nbformat.read(product.target, as_version=4)
    kept, made = (cells.described(nb) for nb in (ours, product.skeleton()))
    if len(kept["cells"]) != len(made["cells"]):
        return f"{name} has {len(kept['cells'])} cells, not {len(made['cells'])}"
    for i, pair in enumerate(zip(kept["cells"], made["cells"], strict=True)):
        if pair[0] != pair[1]:
            return f"{name}: cell {i} is not as in {product.source.name}"
    if not product.executed and any(cell.get("outputs") for cell in ours.cells):
        return f"{name} has outputs"
    return None if kept == made else f"{name}: other metadata"


def orphans(root: Path = ROOT) -> list[Path]:
    """Notebooks without a source."""
    built = {product.target for product in products(root)}
    folders = ("notebooks", "solutions", "exercises")
    lying = (path for folder in folders for path in (root / folder).glob("*.ipynb"))
    return sorted(path for path in lying if path not in built)


def build(product: Product) -> float:
    """Build one notebook; return the processor time that it took, in seconds.

    Raises:
        CellExecutionError: a cell failed; what was committed stays as it was.
    """
    made, seconds = product.skeleton(), 0.0
    if product.executed:
        seconds = execute(made, product.target.parent)
        tidy(made)
    with atomic_write(product.target) as temporary:
        text = nbformat.writes(made)
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return seconds


def execute(made: NotebookNode, folder: Path) -> float:
    """Run all cells in a new kernel of one thread; return its processor time."""
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        made, timeout=TIMEOUT, kernel_name="python3", resources=where
    )
    client.record_timing = False
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with client.setup_kernel(env=one_thread):
        for i, cell in enumerate(made.cells):
            client.execute_cell(cell, i)
        last = client.execute_cell(new_code_cell(SPENT), len(made.cells))
    return float(last.outputs[0].text)


def tidy(made: NotebookNode) -> None:
    """Keep of the outputs what is the same on every machine."""
    made.metadata = nbformat.from_dict(cells.METADATA)
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [out for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = kept


def main(arguments: Sequence[str]) -> int:
    """Build or check; return the exit status."""
    chapters = [a for a in arguments if not a.startswith("-")]
    wanted = products(chapters=chapters)
    if "--check" in arguments:
        faults = [fault for fault in map(differs, wanted) if fault]
        faults += [f"{path.name} has no source" for path in orphans()]
        print("\n".join(faults) or f"{len(wanted)} notebooks are as their sources.")
        return 1 if faults else 0
    for product in wanted:
        name = product.target.relative_to(ROOT).as_posix()
        try:
            seconds = build(product)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        budget = budget_of(product.skeleton().cells[0].source)
        spent = f"{seconds:.0f} s of processor time {judged(seconds, budget)}"
        print(f"{name}: {spent if product.executed else 'not executed'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
