"""Build the notebooks: sources in, executed notebooks and exercises out.

    python -m minillm.school.build             build all
    python -m minillm.school.build 01 13       build two chapters
    python -m minillm.school.build --check     are the committed ones as they should be?

What is built of what, and what is checked, stands in ``minillm.school.products``.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from minillm.files import atomic_write
from minillm.school import cells
from minillm.school.budget import SPENT, budget_of, judged
from minillm.school.products import ROOT, Product, faults, orphans, products

TIMEOUT = 900  # seconds for a cell: the first one may have to train a model of the zoo


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
    made.cells.append(new_code_cell(SPENT))
    with client.setup_kernel(env=one_thread):
        for i, cell in enumerate(made.cells):
            client.execute_cell(cell, i)
    return float(made.cells.pop().outputs[0].text)


def tidy(made: NotebookNode) -> None:
    """Keep of the outputs what is the same on every machine."""
    made.metadata = nbformat.from_dict(cells.METADATA)
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [out for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = kept


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Build or check; return the exit status."""
    chapters = [a for a in arguments if not a.startswith("-")]
    wanted = products(root, chapters)
    for product in wanted if "--check" not in arguments else ():
        try:
            print(told(product, build(product)), flush=True)
        except CellExecutionError as error:
            print(f"{product.name}: {error}", file=sys.stderr)
            return 1
    found = [fault for product in wanted for fault in faults(product)]
    found += [] if chapters else orphans(root)
    print("\n".join(found) or f"{len(wanted)} notebooks are as they should be.")
    return 1 if found else 0


def told(product: Product, seconds: float) -> str:
    """What was built, and what it took, beside its budget."""
    if not product.executed:
        return f"{product.name}: not executed"
    budget = budget_of(product.skeleton().cells[0].source)
    spent = f"{seconds:.0f} s of processor time"
    return f"{product.name}: {spent} {judged(seconds, budget)}".rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
