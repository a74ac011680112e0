"""Committed notebooks are what their sources say: each way to differ is named."""

import json
from pathlib import Path

import nbformat
import pytest

from minillm.files import atomic_write
from minillm.school.products import differs, faults, orphans, products

SOURCE = """# %% [markdown]
# # Why?
#
# CPU 2 cores · ~4 s · < 1 GB

# %% tags=["sum"]
# --- solution: x = None
x = 1
# --- end of solution
print(x)
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """A course of one chapter, with all three of its notebooks, unexecuted."""
    for folder in ("notebooks", "solutions"):
        source = tmp_path / folder / "src" / "01_why.py"
        source.parent.mkdir(parents=True)
        source.write_text(SOURCE, encoding="utf-8")
    for product in products(tmp_path):
        pretend_executed(product)
    return tmp_path


def pretend_executed(product) -> None:
    """Write a notebook as if it had been executed, and printed nothing."""
    made = product.skeleton()
    for number, cell in enumerate(c for c in made.cells if c.cell_type == "code"):
        cell.execution_count = number + 1 if product.executed else None
    write(product.target, made)


def write(path: Path, notebook) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(nbformat.writes(notebook), encoding="utf-8")


def test_a_chapter_becomes_notebook_solutions_and_exercises(root):
    names = [product.name for product in products(root)]
    assert names == [
        f"{n}/01_why.ipynb" for n in ("notebooks", "solutions", "exercises")
    ]
    assert [product.executed for product in products(root)] == [True, True, False]


def test_an_unknown_chapter_is_answered_with_the_known_ones(root):
    with pytest.raises(ValueError, match=r"chapter must be one of 01, got '07'"):
        products(root, ["07"])


def test_what_was_built_of_a_source_does_not_differ(root):
    assert [differs(product) for product in products(root)] == [None] * 3


@pytest.mark.parametrize("which", range(3))
def test_a_notebook_that_was_never_built_is_named(root, which):
    product = products(root)[which]
    product.target.unlink()
    assert differs(product) == f"{product.name} has not been built"


def edit_text(notebook) -> None:
    notebook.cells[1].source = notebook.cells[1].source.replace("print(x)", "print(2)")


def edit_type(notebook) -> None:
    notebook.cells[1].cell_type = "raw"


def edit_tags(notebook) -> None:
    notebook.cells[1].metadata["tags"] = ["other"]


def edit_id(notebook) -> None:
    notebook.cells[1].id = "another"


def edit_metadata(notebook) -> None:
    notebook.cells[0].metadata["editable"] = False


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    "edit", [edit_text, edit_type, edit_tags, edit_id, edit_metadata]
)
def test_a_notebook_that_was_edited_by_hand_is_found(root, which, edit):
    product = products(root)[which]
    notebook = nbformat.read(product.target, as_version=4)
    edit(notebook)
    write(product.target, notebook)
    assert differs(product).startswith(f"{product.name}: cell ")
    assert faults(product) == [differs(product)]


def test_a_notebook_that_was_not_executed_is_found(root):
    solutions = products(root)[1]
    write(solutions.target, solutions.skeleton())
    assert "not executed" in faults(solutions)[0]


def test_another_kernel_is_found(root):
    product = products(root)[0]
    notebook = nbformat.read(product.target, as_version=4)
    notebook.metadata["kernelspec"]["name"] = "minillm"
    write(product.target, notebook)
    assert differs(product) == "notebooks/01_why.ipynb: other metadata"


def test_a_cell_that_was_added_or_a_source_that_went_on_is_found(root):
    product = products(root)[0]
    product.source.write_text(SOURCE + "\n# %%\nprint(3)\n", encoding="utf-8")
    assert differs(product) == "notebooks/01_why.ipynb has 2 cells, not 3"


def with_output(product, text: str) -> None:
    notebook = nbformat.read(product.target, as_version=4)
    output = nbformat.v4.new_output("stream", name="stdout", text=text)
    notebook.cells[1].outputs = [output]
    write(product.target, notebook)


def test_outputs_are_not_compared_but_exercises_have_none(root):
    notebook, _, exercises = products(root)
    for product in (notebook, exercises):
        with_output(product, "1\n")
    assert differs(notebook) is None
    assert differs(exercises) == "exercises/01_why.ipynb has outputs"


def test_faults_tell_of_rules_and_of_numbers_in_prose(root):
    solutions = products(root)[1]
    assert faults(solutions) == []
    source = SOURCE + "\n# %% [markdown]\n# It is 17.\n"
    solutions.source.write_text(source, encoding="utf-8")
    pretend_executed(solutions)
    name = "solutions/01_why.ipynb"
    assert faults(solutions) == [f"{name}: no cell prints 17, of the prose"]
    with_output(solutions, "17\n")
    assert faults(solutions) == []
    with_output(solutions, "17 <object at 0x7fffab12cd>\n")
    address = f"{name}: the output of cell 1 is of one machine: '0x7fffab'"
    assert faults(solutions) == [address]


def test_a_chapter_is_held_to_the_rules_of_chapters(root):
    assert any("no section" in fault for fault in faults(products(root)[0]))


def test_a_notebook_without_a_source_is_an_orphan(root):
    assert orphans(root) == []
    (root / "exercises" / "02_lost.ipynb").write_text(json.dumps({}), encoding="utf-8")
    assert orphans(root) == ["exercises/02_lost.ipynb has no source"]
