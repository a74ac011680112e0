"""The README's tables of findings, made from the committed results of the studies.

python studies/table.py
"""

from statistics import fmean, stdev

from minillm.school.studies import Study, load_study
from minillm.school.tiny_sft import HELD_OUT
from minillm.world import KINDS, World
from minillm.world.asking import MIXTURE
from minillm.world.instructions import instructions
from minillm.world.lore import PERSON
from minillm.world.preferences import true_reward

ARMS = ("1,200 steps", "2,000 steps")  # of the study of the tour


def told(values: list[float], percent: bool = False) -> str:
    """Mean and standard deviation over seeds.

    >>> told([0.5, 0.6, 0.7], percent=True)
    '60 % ± 10'
    """
    if percent:
        return f"{100 * fmean(values):.0f} % ± {100 * stdev(values):.0f}"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, numbers on the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of(study: Study, arm: str, *path: str) -> list[float]:
    """A measure of an arm, however deep it lies in the results."""
    found = study.values(arm, path[0])
    for name in path[1:]:
        found = [value[name] for value in found]
    return found


def tour_table() -> str:
    """Truth beside measurement for the main job."""
    study, (guess, best) = load_study("03_tour"), truths()
    rows = [
        (f"excess over the floor: {kind} (nats per token)", "0", ("excess", kind))
        for kind in (*KINDS, "total")
    ]
    rows += [
        (f"facts recalled, people of {group}", "100 %", ("recall", group))
        for group in study.values(ARMS[0], "recall")[0]
        if group.startswith("rank")
    ]
    rows += [
        ("chains of two facts", "100 %", ("recall", "two-hop")),
        ("sums and tasks, as documents put them", "100 %", ("recall", "skills")),
        ("calibration error of these answers", "0", ("calibration error",)),
        ("confidence about people who do not exist", guess, ("confidence", "nobody")),
    ]
    rows += [
        (f"held-out instructions: {topic}", "100 %", ("responses", topic))
        for topic in MIXTURE.texts
    ]
    rows.append(("true reward of the responses", best, ("responses", "reward")))
    body = [
        [name, truth, *(told(of(study, arm, *path), "%" in truth) for arm in ARMS)]
        for name, truth, path in rows
    ]
    return table(["the main job", "truth", *ARMS], body)


def truths() -> tuple[str, str]:
    """The confidence that a guess deserves, and the reward of good responses."""
    lore = World().lore
    guess = fmean(1 / len(relation.values.texts) for relation in lore.of(PERSON))
    asked = instructions(lore, HELD_OUT, "tour", held_out=True)
    best = fmean(true_reward(each.question, each.good) for each in asked)
    return f"{guess:.3f} or less", f"{best:.3f}"


def optimizer_table() -> str:
    """Excess over the floor for each optimizer and rate."""
    study = load_study("01_optimizers")
    rows = [
        [
            arm,
            told(of(study, arm, "excess")),
            f"{fmean(of(study, arm, 'cpu_seconds')):.0f}",
        ]
        for arm in study.settings
    ]
    return table(["optimizer, learning rate", "excess (nats per token)", "CPU s"], rows)


def recall_table() -> str:
    """Recall by rank for each width."""
    study = load_study("02_size_and_recall")
    groups = list(study.values(next(iter(study.settings)), "recall by rank")[0])
    rows = [
        [arm, *(told(of(study, arm, "recall by rank", g), True) for g in groups)]
        for arm in study.settings
    ]
    return table(["facts recalled by rank", *groups], rows)


def objectives_table() -> str:
    """What each objective knows after equal compute."""
    study = load_study("04_objectives")
    rows = [
        [
            arm,
            f"{study.mean(arm, 'targets a row'):.0f}",
            told(study.values(arm, "chosen"), True),
        ]
        for arm in study.settings
        if "half" not in arm
    ]
    rows.append(["guessing", "", told(study.values("causal", "chance"), True)])
    return table(["objective, equal compute", "targets a row", "facts known"], rows)


def measured_table(name: str, first: str, columns: dict[str, tuple[str, bool]]) -> str:
    """All arms of a study; a column has a measure, which may be a percentage."""
    study = load_study(name)
    rows = [
        [arm, *(told(study.values(arm, m), percent) for m, percent in columns.values())]
        for arm in study.settings
    ]
    return table([first, *columns], rows)


def family_table() -> str:
    """What losses on preferences teach: what is said, and what is preferred."""
    columns = {
        "true reward": ("reward", False),
        "right": ("right", True),
        "KL (nats)": ("kl", False),
        "pairs from elsewhere in the true order": ("accuracy", True),
        "their chosen responses (nats)": ("chosen_change", False),
    }
    return measured_table("06_dpo_family", "equally many pairs", columns)


def displacement_table() -> str:
    """Where the mass goes if two refusals are compared."""
    columns = {
        "chosen (nats)": ("chosen_change", False),
        "rejected (nats)": ("rejected_change", False),
        "refused before": ("right_before", True),
        "refused after": ("right", True),
    }
    return measured_table("07_displacement", "pairs of two refusals", columns)


def sums_table() -> str:
    """What pairs and verified results teach about sums."""
    columns = {
        "right before": ("before", True),
        "right after": ("after", True),
        "pairs from elsewhere in order": ("pair_accuracy", True),
        "pairs of its own in order": ("own_accuracy", True),
    }
    return measured_table("08_where_dpo_fails", "held-out sums", columns)


def annotators_table() -> str:
    """What DPO learns from whom."""
    columns = {
        "true reward": ("reward", False),
        "tokens": ("tokens", False),
        "agrees with them": ("agreement", True),
        "true order": ("accuracy", True),
        "prefers the longer": ("longer", True),
        "prefers the wrong": ("wrong", True),
    }
    return measured_table("09_annotators", "DPO on verdicts of", columns)


def tables() -> str:
    """All of them, as they stand in the README."""
    made = (tour_table(), optimizer_table(), recall_table(), objectives_table())
    made += (family_table(), displacement_table(), sums_table(), annotators_table())
    return "\n\n".join(made)


if __name__ == "__main__":
    print(tables())
