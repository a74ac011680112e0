"""What a notebook promises to cost, and what it did cost, in processor time.

The clock on the wall says as much about what else the machine was doing. So the budget
in a notebook's header is processor time, of the kernel and of all that it started.
"""

import re

BUDGET = re.compile(r"CPU 2 cores · ~(\d+) s · < (\d+) GB")
WARN, FAIL = 1.5, 4.0  # times the budget
SPENT = "import os; print(sum(os.times()[:4]))"  # what a kernel is asked at the end


def budget_of(header: str) -> float | None:
    """Seconds that the first cell of a notebook promises; None if it is silent.

    >>> budget_of("# Why?\\n\\nCPU 2 cores · ~40 s · < 1 GB")
    40.0
    """
    found = BUDGET.search(header)
    return float(found[1]) if found else None


def judged(seconds: float, budget: float | None) -> str:
    """What to say of a notebook that took so long.

    >>> judged(40, 40), judged(70, 40), judged(200, 40), judged(10, None)
    ('', 'over its budget', 'FAR over its budget', 'has no budget')
    """
    if budget is None:
        return "has no budget"
    if seconds > FAIL * budget:
        return "FAR over its budget"
    return "over its budget" if seconds > WARN * budget else ""


def fails(seconds: float, budget: float | None) -> bool:
    """Whether that is a failure: no budget, or far above it.

    >>> fails(161, 40), fails(159, 40)
    (True, False)
    """
    return budget is None or seconds > FAIL * budget
