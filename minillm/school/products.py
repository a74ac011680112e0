"""What is built of what, and whether the committed notebooks are as they should be.

    notebooks/src/NN_name.py    notebooks/NN_name.ipynb    executed from top to bottom
    solutions/src/NN_name.py    solutions/NN_name.ipynb    executed
                                exercises/NN_name.ipynb    solutions taken out, not run

Nothing is executed here. ``differs`` compares all but outputs with the source, so it
finds every notebook that was edited by hand; ``faults`` reads the outputs too, for the
rules and for numbers in prose. That outputs are still what the code prints is nbval's
business (``python -m minillm.school.notebooks``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from minillm.errors import require
from minillm.school import cells, rules
from minillm.school.prose import unprinted

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"notebooks": ("notebooks",), "solutions": ("solutions", "exercises")}


class Product(NamedTuple):
    """A notebook that is built, and what it is built from."""

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """Short, for messages: ``exercises/01_name.ipynb``."""
        return f"{self.target.parent.name}/{self.target.name}"

    @property
    def chapter(self) -> str:
        """Its number, as in the name of the source."""
        return self.source.name[:2]

    @property
    def executed(self) -> bool:
        """Whether it has outputs."""
        return self.target.parent.name != "exercises"

    def skeleton(self) -> NotebookNode:
        """All of it that does not have to be executed."""
        return (cells.notebook if self.executed else cells.exercises)(self.source)


def products(root: Path = ROOT, chapters: Sequence[str] = ()) -> list[Product]:
    """Everything that is built, in the order of chapters, or what is built of some.

    Raises:
        ValueError: a chapter that has no source.
    """
    found = [
        Product(source, root / target / f"{source.stem}.ipynb")
        for folder, targets in TARGETS.items()
        for source in sorted((root / folder / "src").glob("[0-9]*.py"))
        for target in targets
    ]
    known = sorted({product.chapter for product in found})
    for chapter in chapters:
        need = f"one of {', '.join(known)}"
        require(chapter in known, "chapter", chapter, need, "or write its source")
    return [p for p in found if not chapters or p.chapter in chapters]


def orphans(root: Path = ROOT) -> list[str]:
    """Notebooks without a source."""
    built = {product.target for product in products(root)}
    folders = [folder for targets in TARGETS.values() for folder in targets]
    lying = (path for folder in folders for path in (root / folder).glob("*.ipynb"))
    alone = sorted(path for path in lying if path not in built)
    return [f"{path.parent.name}/{path.name} has no source" for path in alone]


def differs(product: Product) -> str | None:
    """Why a committed notebook is not what its source says; None if it is.

    >>> differs(Product(Path("src/01_none.py"), Path("notebooks/01_none.ipynb")))
    'notebooks/01_none.ipynb has not been built'
    """
    name = product.name
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


def faults(product: Product) -> list[str]:
    """All that can be said against a committed notebook without running it."""
    if different := differs(product):
        return [different]
    if not product.executed:
        return []
    read = nbformat.read(product.target, as_version=4).cells
    found = rules.faults(read, chapter=product.target.parent.name == "notebooks")
    found += [f"no cell prints {number}, of the prose" for number in unprinted(read)]
    return [f"{product.name}: {fault}" for fault in found]
