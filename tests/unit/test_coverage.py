"""The table of coverage: what a chapter promised and lacks is listed, line by line."""

from pathlib import Path

import pytest

from minillm.school import coverage
from minillm.school.coverage import chapters, existing, missing

TABLE = """
finished = true
claims = ["A1"]

[[topic]]
id = "77.1"
title = "loss"
needs = ["code", "experiment", "exercise", "answer"]
code = ["minillm.training:next_token_loss"]
cells = ["loss"]
exercises = ["77.loss"]
answers = ["answer-loss"]

[[question]]
id = "Q1"
title = "Why?"
needs = ["answer"]
answers = ["answer-why"]
"""
NOTEBOOK = '# %% tags=["loss"]\nclaim("A1", 10.8)\n'
SOLUTIONS = '# %% tags=["answer-loss"]\n1\n# %% [markdown] tags=["answer-why"]\n# So.\n'


class Exercise:
    """All that coverage wants of an exercise."""

    id = "77.loss"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A course with chapter 77, which lacks nothing."""
    texts = {
        "notebooks/coverage/77.toml": TABLE,
        "notebooks/src/77_loss.py": NOTEBOOK,
        "solutions/src/77_loss.py": SOLUTIONS,
    }
    for name, text in texts.items():
        change(tmp_path, name, text)
    defined = {"checks": (Exercise(),), "claims": ()}
    monkeypatch.setattr(coverage, "_defined", lambda where, *_: defined[where])
    return tmp_path


def change(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def test_a_chapter_that_keeps_its_promises_lacks_nothing(root):
    assert missing("77", root) == []
    assert chapters(root) == ["77"]


@pytest.mark.parametrize(
    ("kept", "instead", "lack"),
    [
        ('cells = ["loss"]', "", "77.1 (loss): no experiment is named"),
        ('cells = ["loss"]', "cells = []", "77.1 (loss): no experiment is named"),
        ('["loss"]', '["lost"]', "77.1 (loss): there is no experiment 'lost'"),
        (
            "training:next_token_loss",
            "training:magic",
            "77.1 (loss): there is no code 'minillm.training:magic'",
        ),
        (
            "minillm.training:",
            "minillm.trainings:",
            "77.1 (loss): there is no code 'minillm.trainings:next_token_loss'",
        ),
        ('"77.loss"', '"77.los"', "77.1 (loss): there is no exercise '77.los'"),
        ('"answer-why"', '"answer-how"', "Q1 (Why?): there is no answer 'answer-how'"),
        ('["A1"]', '["A1", "A2"]', "claim A2 is nowhere put to the test"),
    ],
)
def test_what_is_missing_is_named(root, kept, instead, lack):
    assert TABLE.count(kept) == 1
    change(root, "notebooks/coverage/77.toml", TABLE.replace(kept, instead))
    assert missing("77", root) == [lack]


def test_a_cell_of_the_notebook_is_no_answer_and_an_answer_is_no_experiment(root):
    change(root, "notebooks/src/77_loss.py", NOTEBOOK.replace('"loss"', '"answer-why"'))
    change(root, "solutions/src/77_loss.py", SOLUTIONS.replace("answer-why", "loss"))
    lacks = ["77.1 (loss): there is no experiment 'loss'"]
    assert missing("77", root) == [*lacks, "Q1 (Why?): there is no answer 'answer-why'"]


def test_a_claim_in_a_comment_or_in_words_is_not_put_to_the_test(root):
    for text in ('# %%\n"claim A1"\n', "# %% [markdown]\n# claim A1\n"):
        change(root, "notebooks/src/77_loss.py", NOTEBOOK.split("claim")[0] + text)
        assert missing("77", root) == ["claim A1 is nowhere put to the test"]


def test_claims_that_are_declared_for_a_chapter_have_to_be_made(root, monkeypatch):
    class Declared:
        id = "Z9"

    defined = {"checks": (Exercise(),), "claims": (Declared(),)}
    monkeypatch.setattr(coverage, "_defined", lambda where, *_: defined[where])
    assert missing("77", root) == ["claim Z9 is nowhere put to the test"]


def test_a_word_for_a_need_that_there_is_not_is_refused(root):
    change(root, "notebooks/coverage/77.toml", TABLE.replace('"answer"]', '"song"]'))
    with pytest.raises(ValueError, match="song"):
        missing("77", root)


def test_a_topic_that_needs_nothing_is_named(root):
    change(root, "notebooks/coverage/77.toml", TABLE.replace('["answer"]', "[]"))
    assert missing("77", root) == ["Q1 (Why?): it needs nothing"]


def test_a_chapter_without_a_table_is_told_to_write_one(root):
    change(root, "notebooks/src/78_more.py", NOTEBOOK)
    assert chapters(root) == ["77", "78"]
    with pytest.raises(FileNotFoundError, match=r"78\.toml"):
        missing("78", root)


def test_declared_claims_and_exercises_are_found_where_they_are_defined(tmp_path):
    assert {it.id for it in coverage._defined("claims", "01", "CLAIMS")} >= {
        "A1",
        "A14",
    }
    assert coverage._defined("claims", "99", "CLAIMS") == ()
    assert coverage._defined("nowhere", "01", "CLAIMS") == ()
    assert existing("99", tmp_path)["claims"] == set()


def test_the_command_counts_and_lists_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "missing", lambda chapter: ["one", "another"])
    monkeypatch.setattr(coverage, "table", lambda chapter: {"finished": True})
    coverage.main(["77"])
    head = "Chapter 77, finished: 2 things are missing."
    assert capsys.readouterr().out == f"{head}\n    one\n    another\n"
