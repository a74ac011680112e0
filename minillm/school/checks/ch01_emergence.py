"""Chapter 01: choose a metric by which an ability seems to appear at once."""

from collections.abc import Sequence

from minillm.evaluation.emergence import Emergence, outcome
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import Tools
from minillm.school.grading.subject import Subject

SIZES = (6, 7, 8, 9, 10, 11, 12)
CLAIMS = tuple(outcome(Emergence("exact match", "token accuracy", 30, SIZES)))


def check(subject: Subject, tools: Tools) -> None:
    """The configuration is one; replayed, it shows all that it should."""

    def configuration(asked: Subject):
        return asked.call("emergence")

    def shown(asked: Subject) -> list[bool]:
        return list(outcome(Emergence(**configuration(asked))).values())

    tools.holds(subject, "configuration", "it is one", configuration, _no_experiment)
    if tools.slow:
        tools.holds(subject, "experiment", "replayed", shown, _not_shown)


def _no_experiment(answer: dict) -> str:
    try:
        Emergence(**answer)
    except (TypeError, ValueError) as error:
        return f"returned no experiment: {error}"
    return ""


def _not_shown(shown: Sequence[bool]) -> str:
    failed = [claim for claim, ok in zip(CLAIMS, shown, strict=True) if not ok]
    return f"does not show that {failed[0]}" if failed else ""


def emergence():
    """One of many right choices."""
    return Emergence("exact match", "token accuracy", length=30, sizes=SIZES)


def answers_of_one_token():
    """With answers of one token, exact match is token accuracy, and nothing jumps. What
    is rare is to get many tokens right in a row: ask for longer answers."""
    return Emergence("exact match", "token accuracy", length=1, sizes=SIZES)


def answers_without_end():
    """The answers are so long that even the largest model gets none of them right.
    Shorten them until it does, and the small ones still do not."""
    return Emergence("exact match", "token accuracy", length=1000, sizes=SIZES)


def metrics_swapped():
    """The two metrics are the wrong way round: the share of right tokens grows with
    every model."""
    return Emergence("token accuracy", "exact match", length=30, sizes=SIZES)


def gap_between_the_models():
    """The jump is in your choice of models: several are nearly alike, and then comes
    one that is far larger. Spread them evenly."""
    sizes = (6, 6.2, 6.4, 6.6, 12)
    return Emergence("exact match", "token accuracy", length=30, sizes=sizes)


EMERGENCE = Exercise(
    id="01.emergence",
    kind="X",
    points=2,
    level=1,
    minutes=10,
    task="Write emergence(), which returns an Emergence: two metrics, the length of "
    "an answer, and the sizes of the models. By the sudden metric the ability must "
    "seem to appear at once, while the smooth one rises from the first models on.",
    solution={"emergence": emergence},
    check=check,
    mutants={
        "emergence": (
            answers_of_one_token,
            answers_without_end,
            metrics_swapped,
            gap_between_the_models,
        )
    },
    hints=(
        "A model gets 9 of 10 tokens right. How often does it get 30 right in a row?",
        "Draw curve(metric, length, sizes) for each metric over evenly spread sizes, "
        "first with answers of one token, then with longer ones.",
        "Exact match against token accuracy, seven sizes from a million parameters to "
        "a trillion, and answers of a few dozen tokens.",
    ),
)
