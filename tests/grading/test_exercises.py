"""The grader is graded: right answers pass in any style, wrong ones are named."""

import ast
import textwrap

import pytest
from styles import STYLES

from minillm.school.checks import all_exercises, examine, exercise
from minillm.school.checks.exercise import Exercise, spoken
from minillm.school.checks.tools import Tools
from minillm.school.grading.find import find
from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.process import ProcessSubject
from minillm.school.grading.workshop import Workshop

EXERCISES = {e.id: e for e in all_exercises()}
MUTANTS = [
    pytest.param(e.id, mutant, id=f"{e.id}-{mutant.__name__}")
    for e in EXERCISES.values()
    for mutant in e.all_mutants
]
BROKEN = {  # the code to be repaired -> the mistake that it makes
    "01.double_shift": "shifted twice",
    "13.padded_logprob": "padding counts",
}
STYLED = [(id, style) for id, styles in STYLES.items() for style in styles]


@pytest.fixture(scope="module")
def workshop():
    with Workshop() as shop:
        yield shop


def judged(asked: Exercise, answer: dict, shop: Workshop | None, seed: int = 0):
    """An answer's result, in process or, if there is a workshop, in a child."""
    if shop is None:
        return examine(asked, InProcess(answer), seed, slow=True)
    imports = "\n".join(
        f"from {f.__module__} import {f.__name__} as {name}"
        for name, f in answer.items()
    )
    subject = ProcessSubject(imports, shop)
    try:
        return examine(asked, subject, seed, slow=True)
    finally:
        subject.close()


@pytest.mark.parametrize("place", ["here", "child"])
@pytest.mark.parametrize("id", EXERCISES)
def test_the_solution_gets_full_marks(id, place, workshop):
    asked = EXERCISES[id]
    result = judged(asked, asked.solution, workshop if place == "child" else None)
    assert [v for v in result.verdicts if v.wrong] == []
    assert result.score == asked.points and not result.mistakes


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("id", EXERCISES)
def test_other_seeds_tell_right_from_wrong_as_well(id, seed):
    asked = EXERCISES[id]
    assert judged(asked, asked.solution, None, seed).score == asked.points
    for mutant, answer in asked.mutated().items():
        result = judged(asked, answer, None, seed)
        assert [m.name for m in result.mistakes] == [spoken(mutant)]


@pytest.mark.parametrize("place", ["here", "child"])
@pytest.mark.parametrize(("id", "mutant"), MUTANTS)
def test_a_mutant_is_refused_and_named(id, mutant, place, workshop):
    asked = EXERCISES[id]
    answer = asked.mutated()[mutant]
    result = judged(asked, answer, workshop if place == "child" else None)
    assert result.score < asked.points
    assert [m.name for m in result.mistakes] == [spoken(mutant)]
    wrong = [v for v in result.verdicts if v.wrong]
    assert len(wrong) >= (1 if asked.kind == "X" else 2)


@pytest.mark.parametrize("place", ["here", "child"])
@pytest.mark.parametrize("id", EXERCISES)
def test_a_stub_gets_nothing_and_is_told_so(id, place, workshop):
    asked = EXERCISES[id]
    stubs = "\n".join(f"def {n}(*_): raise NotImplementedError" for n in asked.names)
    if place == "child":
        subject = ProcessSubject(stubs, workshop)
    else:
        namespace = {}
        exec(stubs, namespace)
        subject = InProcess(namespace)
    result = examine(asked, subject, slow=True)
    assert result.score == 0 and not result.mistakes
    assert all("is not written yet" in v.wrong for v in result.verdicts)


@pytest.mark.parametrize("place", ["here", "child"])
@pytest.mark.parametrize(("id", "style"), STYLED)
def test_a_right_answer_in_another_style_gets_full_marks(id, style, place, workshop):
    found = find(
        ast.parse(textwrap.dedent(STYLES[id][style])).body, EXERCISES[id].names
    )
    if place == "child":
        subject = ProcessSubject(found.source, workshop)
    else:
        namespace = {}
        exec(found.source, namespace)
        subject = InProcess(namespace)
    result = examine(EXERCISES[id], subject, slow=True)
    assert [(v.fixture, v.wrong) for v in result.verdicts if v.wrong] == []
    assert result.score == EXERCISES[id].points


@pytest.mark.parametrize("id", EXERCISES)
def test_each_exercise_has_styles_mutants_and_hints_enough(id):
    asked = EXERCISES[id]
    assert len(STYLES[id]) >= 2
    assert len(asked.all_mutants) >= (1 if asked.kind == "X" else 4)
    assert len({*asked.hints}) == 3 and all(asked.hints)
    assert set(asked.mutants) == set(asked.solution), "each function can go wrong"


@pytest.mark.parametrize("id", [e.id for e in EXERCISES.values() if e.start])
def test_the_code_to_be_repaired_is_refused_with_a_name(id):
    asked = EXERCISES[id]
    result = judged(asked, {**asked.solution, **asked.start}, None)
    assert result.score == 0 and [m.name for m in result.mistakes] == [BROKEN[id]]


@pytest.mark.parametrize("id", EXERCISES)
def test_each_part_is_tried_on_two_fixtures(id):
    """A wrong answer must show on two fixtures, or luck could pass for insight."""
    asked = EXERCISES[id]
    tools = Tools(asked.solution, slow=True)
    asked.check(InProcess({}), tools)
    for name in {v.part for v in tools.verdicts}:
        shown = [v for v in tools.verdicts if v.part == name]
        assert all(v.wrong for v in shown)
        assert len(shown) >= (1 if asked.kind == "X" else 2)


def test_an_unknown_mistake_gets_no_name():
    asked = exercise("01.next_token_loss")
    result = judged(asked, {"next_token_loss": lambda z, t, m=None: z.mean()}, None)
    assert result.score == 0 and result.mistakes == ()


def test_two_mistakes_in_two_functions_get_two_names():
    asked = exercise("01.perplexity")
    wrong = {name: group[0] for name, group in asked.mutants.items()}
    result = judged(asked, wrong, None)
    names = {m.part: m.name for m in result.mistakes}
    assert names == {name: spoken(mutant) for name, mutant in wrong.items()}


def test_functions_of_one_exercise_share_its_points():
    asked = exercise("01.perplexity")
    half = {"perplexity": asked.solution["perplexity"]}
    assert judged(asked, half, None).score == pytest.approx(asked.points / 3)
