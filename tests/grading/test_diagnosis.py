"""A mistake gets a name only if there is no doubt about it."""

import pytest

from minillm.school.checks import Exercise, examine
from minillm.school.checks.tools import agrees
from minillm.school.grading.inprocess import InProcess


def double(x):
    return 2 * x


def squared(x):
    """This is the square."""
    return x * x


def power(x):
    """This is a power."""
    return x**2


def shifted(x):
    """This is one too many."""
    return 2 * x + 1


def exercise_with(*mutants, fixtures=(1, 2, 3), **changes) -> Exercise:
    given = {
        "id": "99.double",
        "kind": "I",
        "points": 1,
        "level": 1,
        "minutes": 1,
        "task": "Double it.",
        "solution": {"double": double},
        "check": agrees("double", lambda seed: {f"{x}": (x,) for x in fixtures}),
        "mutants": {"double": mutants},
        "hints": ("a", "b", "c"),
    }
    return Exercise(**(given | changes))


def names(asked: Exercise, answer) -> list[str]:
    result = examine(asked, InProcess({"double": answer}))
    assert result.score == 0
    return [mistake.name for mistake in result.mistakes]


def test_one_mutant_that_fits_is_named():
    assert names(exercise_with(squared, shifted), lambda x: x * x) == ["squared"]
    assert names(exercise_with(squared, shifted), lambda x: x + x + 1) == ["shifted"]


def test_two_mutants_that_fit_are_not():
    assert names(exercise_with(squared, power), lambda x: x * x) == []


def test_one_fixture_is_not_enough_to_name_a_mistake():
    # 2 * 2 is 2 squared: only the fixture 1 shows the difference
    assert names(exercise_with(squared, fixtures=(1, 2)), lambda x: x * x) == []
    assert names(exercise_with(squared, fixtures=(1, 2, 3)), squared) == ["squared"]


def test_an_experiment_needs_only_one():
    asked = exercise_with(squared, fixtures=(1, 2), kind="X")
    assert names(asked, squared) == ["squared"]


def test_a_mutant_must_fit_everywhere():
    assert names(exercise_with(squared), lambda x: x * x if x < 3 else 0) == []


def test_two_answers_that_fail_in_one_way_are_alike():
    def crash(x):
        """You looked for a key."""
        return {}[x]

    assert names(exercise_with(crash, squared), lambda x: {}["k"]) == ["crash"]
    assert names(exercise_with(crash, squared), lambda x: [][x]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "Q"}, "kind must be one of"),
        ({"level": 4}, "level must be 1, 2 or 3"),
        ({"hints": ("one",)}, "hints must be three"),
        ({"mutants": {"treble": (squared,)}}, "mutants must be of"),
        ({"mutants": {"double": (lambda x: x,)}}, "must be explained"),
    ],
)
def test_an_exercise_that_cannot_work_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        exercise_with(squared, **changes)
