"""The README's tables of findings, made from the committed results of the studies.

python studies/table.py
"""

from statistics import fmean, stdev

from minillm.school.studies import Study, load_study


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
    study = load_study("03_tour")
    excess = ("predictable", "remembered", "irreducible", "total")
    rows = [
        (f"excess over the floor: {k} (nats per token)", "0", ("excess", k), False)
        for k in excess
    ]
    rows += [
        (f"facts recalled, people of {group}", "100 %", ("recall", group), True)
        for group in study.values("1,200 steps", "recall")[0]
        if group.startswith("rank")
    ]
    rows += [
        ("calibration error of these answers", "0", ("calibration error",), False),
        ("confidence about people who do not exist", "at most 0.046", NOBODY, False),
        (
            "held-out instructions answered rightly",
            "100 %",
            ("responses", "right"),
            True,
        ),
        ("true reward of the responses", "4.9", ("responses", "reward"), False),
    ]
    arms = list(study.settings)
    body = [
        [name, truth, *(told(of(study, arm, *path), percent) for arm in arms)]
        for name, truth, path, percent in rows
    ]
    return table(["the main job", "truth", *arms], body)


NOBODY = ("confidence", "nobody")


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


def tables() -> str:
    """All of them, as they stand in the README."""
    return "\n\n".join([tour_table(), optimizer_table(), recall_table()])


if __name__ == "__main__":
    print(tables())
