"""The rules of a notebook: each fault is named, and praise is silent."""

import copy
import itertools

import pytest

from minillm.school.rules import COLUMNS, IGNORED, LINES, SCREEN, faults

HEADER = """# Why?

**After this you can** explain it.
**You need** nothing.
**Code** minillm/training.

CPU 2 cores · ~40 s · < 1 GB"""
END = "\n".join(
    f"## {section}\n"
    for section in (
        "What to remember",
        "Common mistakes",
        "Exercises",
        "Interview questions",
        "References",
    )
)


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def code(source: str, *outputs: dict, tags: tuple = ()) -> dict:
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code",
        "source": source,
        "metadata": metadata,
        "outputs": list(outputs),
        "execution_count": None,
    }


def executed(cells: list[dict]) -> list[dict]:
    """The same cells, with the numbers that they get when they are executed."""
    numbers = itertools.count(1)
    return [
        cell | {"execution_count": next(numbers)} if "outputs" in cell else cell
        for cell in cells
    ]


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


PICTURE = {
    "output_type": "execute_result",
    "data": {"image/png": "iVBOR", "text/plain": "<IPython.core.display.Image object>"},
}
GOOD = [
    markdown(HEADER),
    code("import torch\n\n_ = torch.manual_seed(0)"),
    code("show.picture(axes)", PICTURE),
    markdown("*In the picture: a line that falls.*"),
    code("print(torch.ones(1).sum())", stream("tensor(1.)\n")),
    markdown(END),
]


def faults_with(position: int, cell: dict) -> list[str]:
    """What is said when one cell of the good notebook is another one."""
    cells = copy.deepcopy(GOOD)
    cells[position] = cell
    return faults(executed(cells))


def test_a_good_notebook_has_no_faults():
    assert faults(executed(GOOD)) == []


@pytest.mark.parametrize(
    ("position", "cell", "said"),
    [
        (4, code("x = 1\n" * LINES + "x"), f"cell 4 has {LINES + 1} lines"),
        (4, code("x" * (COLUMNS + 1)), f"cell 4 has {COLUMNS + 1} columns"),
        (4, code("import math"), "cell 4 imports"),
        (4, code("if x:\n    from math import pi"), "cell 4 imports"),
        (1, code("import torch"), "sets no seed"),
        (4, code("", stream("a\n" * (SCREEN + 1))), "longer than a screen"),
        (4, code("", stream("<Generator at 0x7f3a12bc>")), "one machine: '0x7f3a12'"),
        (4, code("", stream("in /home" + "/ann")), "one machine: '/home/'"),
        (4, code("", stream("in C:\\Temp")), "of one machine"),
        (4, code("", stream("a warning", "stderr")), "cell 4 has an output on stderr"),
        (4, code("", {"output_type": "error"}), "cell 4 has an output on error"),
        (3, markdown("A line that falls."), "cell 2 draws"),
        (0, markdown(HEADER.replace("Why?", "Why")), "the title is no question"),
        (0, markdown(HEADER.replace("# Why?", "## Why?")), "the title is no question"),
        (0, markdown(HEADER.replace("~40 s", "40 s")), "has no budget"),
        (0, markdown(HEADER.replace("**You need**", "")), "no line **You need ...**"),
        (5, markdown(END.replace("## References", "")), "no section 'References'"),
    ],
)
def test_a_fault_is_named(position, cell, said):
    found = faults_with(position, cell)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    "mark",
    [
        {"source": "# NBVAL_IGNORE_OUTPUT\nprint(1)"},
        {"source": "print(1)", "tags": ("nbval-ignore-output",)},
        {"source": "# NBVAL_SKIP\nprint(1)"},
        {"source": "print(1)", "tags": ("nbval-skip",)},
    ],
)
def test_cells_that_are_not_compared_are_few(mark):
    few, many = ([*GOOD, *[code(**mark)] * n] for n in (IGNORED, IGNORED + 1))
    assert faults(executed(few)) == []
    assert faults(executed(many)) == [
        f"{IGNORED + 1} cells are not compared; 2 are allowed"
    ]


def test_numbers_and_plain_paths_are_of_every_machine():
    assert faults_with(4, code("", stream("0x1F, 16 GB, runs/tour, a:b"))) == []


def test_solutions_need_a_budget_but_no_sections():
    solutions = [
        markdown("# Solutions\n\nCPU 2 cores · ~9 s · < 1 GB"),
        *executed(GOOD)[1:4],
    ]
    assert faults(solutions, chapter=False) == []
    assert len(faults(solutions)) > 5
    without = [markdown("# Solutions"), *executed(GOOD)[1:4]]
    assert "has no budget" in faults(without, chapter=False)[0]


@pytest.mark.parametrize("numbers", [(None, None, None), (1, 3, 2), (1, 2, 4)])
def test_a_notebook_that_was_not_executed_in_order_is_found(numbers):
    cells = executed(GOOD)
    code_cells = [cell for cell in cells if "outputs" in cell]
    for cell, number in zip(code_cells, numbers, strict=True):
        cell["execution_count"] = number
    assert faults(cells) == ["it was not executed from top to bottom"]


def test_an_empty_notebook_is_no_chapter():
    assert any("no budget" in fault for fault in faults([]))
