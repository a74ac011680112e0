"""Budgets: read from the header, warned of above 1.5 times, failed above 4 times."""

import pytest

from minillm.school.budget import budget_of, fails, judged

HEADER = "# Why?\n\nSome words.\n\nCPU 2 cores · ~40 s · < 1 GB\n"


def test_the_budget_is_read_from_the_header():
    assert budget_of(HEADER) == 40


@pytest.mark.parametrize(
    "header",
    [
        "# Why?",
        HEADER.replace("~40 s", "40 s"),
        HEADER.replace("·", "-"),
        HEADER.replace("2 cores", "many cores"),
        HEADER.replace("< 1 GB", ""),
    ],
)
def test_what_is_not_written_as_a_budget_is_none(header):
    assert budget_of(header) is None


@pytest.mark.parametrize(
    ("seconds", "words", "failed"),
    [
        (60, "", False),
        (60.1, "over its budget", False),
        (160, "over its budget", False),
        (160.1, "FAR over its budget", True),
    ],
)
def test_the_edges_are_at_one_and_a_half_times_and_at_four_times(
    seconds, words, failed
):
    assert judged(seconds, 40) == words
    assert fails(seconds, 40) == failed


def test_a_notebook_without_a_budget_fails():
    assert fails(0.1, None) and judged(0.1, None) == "has no budget"
