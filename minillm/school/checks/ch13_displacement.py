"""Chapter 13: prefer the chosen response without making it rarer."""

from collections.abc import Sequence

from minillm.alignment.displacement import Displacement, outcome
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import Tools
from minillm.school.grading.subject import Subject

GOALS = tuple(outcome(Displacement(steps=1)))


def check(subject: Subject, tools: Tools) -> None:
    """The configuration is one; replayed, it reaches all four goals."""

    def configuration(asked: Subject):
        return asked.call("fix_displacement")

    def reached(asked: Subject) -> list[bool]:
        return list(outcome(Displacement(**configuration(asked))).values())

    tools.holds(subject, "configuration", "it is one", configuration, _no_run)
    if tools.slow:
        tools.holds(subject, "experiment", "replayed", reached, _missed)


def _no_run(answer: dict) -> str:
    try:
        Displacement(**answer)
    except (TypeError, ValueError) as error:
        return f"returned no run: {error}"
    return ""


def _missed(reached: Sequence[bool]) -> str:
    failed = [goal for goal, ok in zip(GOALS, reached, strict=True) if not ok]
    return f"does not reach the goal that {failed[0]}" if failed else ""


def fix_displacement():
    """One of many right choices: DPO with a little of SFT."""
    return Displacement("dpo", beta=0.5, nll=0.2, steps=100)


def margin_alone():
    """The margin grows, and the chosen response becomes rarer: a loss that sees only
    the margin cannot care. Add something that sees the chosen response itself."""
    return Displacement("dpo", beta=0.5, nll=0.0, steps=100)


def stopped_early():
    """A policy that hardly moves displaces little and has learned as little. Let it
    move, but in another direction."""
    return Displacement("dpo", beta=0.5, nll=0.0, steps=10)


def finite_margin():
    """A loss that wants a finite margin stops sooner, but it moves in the same
    direction. Add something that sees the chosen response itself."""
    return Displacement("ipo", beta=0.5, nll=0.0, steps=100)


def too_little_nll():
    """The chosen response is held up, but mass still flows to a response that nobody
    compared. A little more NLL."""
    return Displacement("dpo", beta=0.5, nll=0.05, steps=100)


def too_much_nll():
    """Now it is mostly fine-tuning: the policy says the chosen response and hardly
    anything else. Less NLL, or fewer steps."""
    return Displacement("dpo", beta=0.5, nll=1.0, steps=100)


FIX_DISPLACEMENT = Exercise(
    id="13.fix_displacement",
    kind="X",
    points=2,
    level=3,
    minutes=15,
    task="Write fix_displacement(), which returns a Displacement: loss, beta, weight "
    "of the NLL, and steps. The margin must grow by a nat without the chosen response "
    "or the policy paying for it: outcome(run) must be true four times.",
    solution={"fix_displacement": fix_displacement},
    check=check,
    mutants={
        "fix_displacement": (
            margin_alone,
            stopped_early,
            finite_margin,
            too_little_nll,
            too_much_nll,
        )
    },
    hints=(
        "DPO sees a difference of two log-probs. What happens to it if both fall by "
        "the same amount?",
        "Add a term that falls only if the chosen response itself becomes likelier, "
        "and give it a weight.",
        "Keep dpo with beta 0.5 and 100 steps; try nll = 0.05, 0.2 and 1 and print "
        "outcome(run) for each.",
    ),
)
