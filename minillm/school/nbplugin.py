"""What nbval is told, and what it does not measure: the processor time of notebooks.

nbval compares outputs exactly. Left out are pictures (it does that by itself) and
stderr, where progress bars and warnings of other systems are written. When the last
cell of a notebook has run, its kernel is asked what it has spent; the summary prints
that beside the budget in the header, and the run fails if a notebook takes four times
its budget. Workers of pytest-xdist hand their numbers over with their reports.

The plugin is loaded by the conftest.py at the root, and costs nothing without nbval.
"""

from queue import Empty

import pytest

from minillm.school.budget import SPENT, budget_of, fails, judged

PROPERTY = "notebook_budget"


class Notebooks:
    """Collects the budgets of notebooks from the reports of their last cells."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float | None]] = {}

    @pytest.hookimpl
    def pytest_collectstart(self, collector) -> None:
        """Do not compare stderr."""
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item, nextitem):
        """After the last cell, ask its kernel what it has spent."""
        if is_notebook(item) and not (nextitem and nextitem.parent is item.parent):
            seconds = processor_time(item.parent.kernel)
            header = next(iter(item.parent.nb.cells), {}).get("source", "")
            if seconds is not None:
                item.user_properties.append((PROPERTY, [seconds, budget_of(header)]))
        return (yield)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report) -> None:
        """Take the number out of a report, whichever process made it."""
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "teardown":
                self.found[report.nodeid.partition("::")[0]] = tuple(value)

    @pytest.hookimpl
    def pytest_sessionfinish(self, session, exitstatus) -> None:
        """Fail if a notebook is far over its budget."""
        over = [name for name, spent in self.found.items() if fails(*spent)]
        if over and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Print what each notebook has spent, and its budget."""
        if self.found:
            terminalreporter.section("processor time of notebooks")
            for name, (seconds, budget) in sorted(self.found.items()):
                line = f"{name}: {seconds:.0f} s of {budget or 0:.0f} s"
                terminalreporter.line(f"{line}  {judged(seconds, budget)}".rstrip())


def pytest_configure(config) -> None:
    """Begin to collect, if notebooks are going to be run."""
    if config.getoption("nbval", False):
        config.pluginmanager.register(Notebooks(), "minillm-notebooks")


def is_notebook(item) -> bool:
    """Whether a test is a cell that nbval runs."""
    return hasattr(item.parent, "kernel") and hasattr(item.parent, "nb")


def processor_time(kernel) -> float | None:
    """Seconds that a running kernel has spent; None if it does not answer any more."""
    if kernel is None or not kernel.is_alive():
        return None
    asked, told = kernel.execute_cell_input(SPENT), None
    try:
        while True:
            message = kernel.get_message("iopub", timeout=30)
            if message["parent_header"].get("msg_id") != asked:
                continue
            if message["msg_type"] == "stream":
                told = float(message["content"]["text"])
            if message["content"].get("execution_state") == "idle":
                return told
    except (Empty, ValueError):
        return None
