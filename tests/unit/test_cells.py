"""Sources become cells: the same ids every time, and exercises without solutions."""

import pytest

from minillm.school.cells import assemble, cell_id, described, without_solutions

SOURCE = '''# %% [markdown]
# # Why so?

# %% tags=["setup"]
import math

# %% tags=["exercise"]
def double(x):
    """Twice x."""
    # --- solution
    y = 2 * x
    return y
    # --- end of solution


# --- solution: rank = None
rank = 4
# --- end of solution

# %% tags=["solution"]
print(double(rank))

# %% [markdown] tags=["answer-why"]
# Because.
'''


def sources(made) -> list[str]:
    return [cell.source for cell in made.cells]


def test_a_source_becomes_the_same_notebook_every_time():
    first, second = (assemble(SOURCE, "01_why") for _ in range(2))
    assert first == second
    assert [cell.id for cell in first.cells] == [cell_id("01_why", i) for i in range(5)]


def test_ids_differ_between_places_and_between_notebooks():
    ids = {cell_id(stem, i) for stem in ("01_why", "02_how") for i in range(200)}
    assert len(ids) == 400
    assert all(len(id_) <= 64 and id_.replace("-", "").isalnum() for id_ in ids)


def test_metadata_hold_tags_and_nothing_else():
    made = assemble('# %% tags=["a"] slideshow={"x": 1} jupyter={"y": 2}\n1', "01_a")
    assert dict(made.cells[0].metadata) == {"tags": ["a"]}
    assert set(made.metadata) == {"kernelspec", "language_info"}


def test_an_exercise_is_what_is_left_without_solutions():
    made = assemble(SOURCE, "01_why", strip=True)
    stub = '    raise NotImplementedError("your code")'
    given = f'def double(x):\n    """Twice x."""\n{stub}\n\n\nrank = None'
    assert sources(made) == ["# Why so?", "import math", given]
    assert not any("2 * x" in text or "Because" in text for text in sources(made))


def test_the_solution_keeps_what_the_exercise_loses():
    assert "    return y" in sources(assemble(SOURCE, "01_why"))[2]


def test_ids_of_exercises_follow_their_own_order():
    made = assemble(SOURCE, "01_why", strip=True)
    assert [cell.id for cell in made.cells] == [cell_id("01_why", i) for i in range(3)]


@pytest.mark.parametrize(
    "source",
    [
        "# --- solution\nx = 1",  # the end is missing: all that follows would vanish
        "x = 1\n# --- end of solution",
        "# --- solution\n# --- solution\n# --- end of solution",
        "# --- solution\n# --- end of solution\n# --- end of solution",
    ],
)
def test_markers_that_are_no_pairs_are_refused(source):
    with pytest.raises(ValueError, match="solution"):
        without_solutions(source)


@pytest.mark.parametrize(
    "line", ["# --- Solution", "#--- solution", "# ---- solution", "# --- solutions"]
)
def test_a_marker_that_is_misspelt_leaves_its_end_alone_and_is_refused(line):
    with pytest.raises(ValueError, match="end of solution"):
        without_solutions(f"{line}\nx = 1\n# --- end of solution")


def test_a_marker_within_a_string_or_after_code_is_no_marker():
    source = 'x = "# --- solution"\ny = 1  # --- solution'
    assert without_solutions(source) == source


def test_outputs_do_not_belong_to_what_is_compared():
    made, other = (assemble(SOURCE, "01_why") for _ in range(2))
    other.cells[1].outputs, other.cells[1].execution_count = ["something"], 7
    assert described(made) == described(other)
    other.cells[1].metadata["tags"] = ["another"]
    assert described(made) != described(other)
