"""Claims: a verdict for each value, printed so that every machine prints the same."""

import json
import math

import pytest
import torch

from minillm.school.claims import VERDICTS, Claim, claim, find, ledger, rounded
from minillm.school.claims.claim import READ, all_claims, by_id
from minillm.school.claims.ledger import entries_of, table
from minillm.school.claims.ledger import main as print_ledger

# --- verdicts


def large(verdict=lambda value: value > 10) -> Claim:
    return Claim("X1", "Two is large.", verdict, "It is small.")


def test_a_predicate_decides_between_holds_and_refuted():
    assert large().verdict(11) == "holds"
    assert large().verdict(2) == "refuted"


def test_a_predicate_may_name_the_verdict():
    assert large(lambda _: "depends").verdict(2) == "depends"


def test_a_verdict_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="verdict must be one of"):
        large(lambda _: "perhaps").verdict(2)
    with pytest.raises(ValueError, match="predicate must be one of"):
        large("holds")  # only what was read may go without a measurement


def test_measured_claims_need_a_value_and_read_ones_have_none():
    with pytest.raises(ValueError, match="measure it"):
        large().verdict()
    with pytest.raises(ValueError, match="X1 is read"):
        large("documented").verdict(3)
    assert large("unsourced").verdict() == "unsourced"


@pytest.mark.parametrize("value", [False, 0, 0.0, torch.tensor(0.0)])
def test_a_value_that_is_false_is_a_value(value):
    assert large().verdict(value) == "refuted"


# --- how values are written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (131_072, "131,072"),
        (10.82, "11"),
        (9.96, "10"),
        (0.0996, "0.10"),
        (0.99, "0.99"),
        (0.999, "1.0"),
        (-0.0312, "-0.031"),
        (1023.5, "1,000"),
        (0.0, "0.0"),
        (math.inf, "inf"),
        ("a cat", "a cat"),
        ((0.5, 3), "0.50 and 3"),
        (torch.tensor(0.123), "0.12"),
    ],
)
def test_values_are_written_to_two_digits_and_counts_exactly(value, written):
    assert rounded(value) == written


@pytest.mark.parametrize("value", [0.12345, 3.21, 8_765.0, 2e-9])
def test_a_last_bit_does_not_change_what_is_written(value):
    assert rounded(value) == rounded(value * (1 + 1e-7))


def test_more_digits_on_demand():
    assert rounded(1023.5, digits=5) == "1,023.5"


# --- what is printed, and the ledger


def test_a_claim_prints_sentence_value_and_verdict(capsys):
    claim("A1", 10.82)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Claim A1, from an interview guide:"
    assert lines[1] == f"    {find('A1').sentence}"
    assert lines[2] == "Measured: 11. Verdict: refuted."


def test_an_unknown_claim_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="id must be one of A1, A2"):
        claim("A0", 1)


OF_TWO = {"A7", "I1", "I5", "I7", "I11"}  # decided by two numbers


@pytest.mark.parametrize("id_", list(all_claims()))
def test_the_ledger_reads_what_a_claim_prints(id_, capsys):
    it = find(id_)
    value = None if it.predicate in READ else (0.9, 0.1) if id_ in OF_TWO else 0.5
    claim(id_, value)
    text = capsys.readouterr().out
    (entry,) = entries_of(f"before\n{text}after\n", "01_why")
    written = None if value is None else rounded(value, it.digits)
    expected = (id_, it.sentence, it.source, written, it.verdict(value), "01_why")
    assert entry == expected
    assert all(len(line) <= 88 for line in text.splitlines())


def notebook(*texts: str) -> str:
    outputs = [[{"name": "stdout", "text": text.splitlines(True)}] for text in texts]
    return json.dumps({"cells": [{"outputs": output} for output in outputs]})


def test_the_ledger_is_read_from_notebooks_in_their_order(tmp_path, capsys):
    for id_ in ("A1", "A6"):
        claim(id_, 1023.5)
    both = capsys.readouterr().out
    claim("A5")
    (tmp_path / "02_b.ipynb").write_text(notebook(both, "no claim"), encoding="utf-8")
    text = notebook(capsys.readouterr().out)
    (tmp_path / "01_a.ipynb").write_text(text, encoding="utf-8")
    entries = ledger(tmp_path)
    assert [(e.id, e.verdict, e.notebook) for e in entries] == [
        ("A5", "documented", "01_a"),
        ("A1", "refuted", "02_b"),
        ("A6", "refuted", "02_b"),
    ]
    assert table(entries).count("\n") == 4 and "1,023.5" in table(entries)
    print_ledger(tmp_path)
    assert capsys.readouterr().out == table(entries) + "\n"


def test_a_claim_that_broke_off_is_not_in_the_ledger(capsys):
    claim("A1", 10.82)
    begun = capsys.readouterr().out.partition("Measured")[0]
    assert entries_of(begun) == []


def test_a_claim_that_broke_off_does_not_take_the_verdict_of_the_next(capsys):
    claim("A1", 10.82)
    begun = capsys.readouterr().out.partition("Measured")[0]
    claim("A5")
    whole = capsys.readouterr().out
    assert [entry.id for entry in entries_of(begun + whole)] == ["A5"]


# --- the claims themselves


@pytest.mark.parametrize("it", all_claims().values(), ids=all_claims().keys())
def test_claims_are_sentences_of_our_own(it):
    assert it.sentence.endswith(".") and it.sentence[0].isupper()
    assert it.why.rstrip(")").endswith(".")
    assert it.source == "an interview guide"
    if isinstance(it.predicate, str):
        assert "Measured" not in it.why
    else:
        assert "easured:" in it.why or it.id == "A1"


@pytest.mark.parametrize(
    ("id_", "value", "verdict"),
    [
        ("A1", math.log(50_000), "refuted"),
        ("A1", 3.1, "holds"),
        ("A2", 2 / 11, "refuted"),
        ("A2", 0.0, "holds"),
        ("A3", 76.8 / 511, "refuted"),
        ("A4", 0.2, "refuted"),
        ("A4", 0.9, "holds"),
        ("A6", 1023.5, "refuted"),
        ("A7", (0.9, 0.1), "depends"),
        ("A7", (0.9, 0.8), "holds"),
        ("A7", (0.2, 0.1), "refuted"),
        ("A8", 0.05, "refuted"),
        ("A8", 0.001, "holds"),
        ("A10", 1.0, "refuted"),
        ("A10", 0.0, "holds"),
        ("A11", 15e12 * 4.4 / 1e15, "refuted"),
        ("A12", 160_000, "refuted"),
        ("A12", 10_000_000_000, "holds"),
        ("I1", (2.3, 0.02), "refuted"),
        ("I1", (0.02, 2.3), "holds"),
        ("I3", 0.4, "refuted"),
        ("I3", 0.0, "holds"),
        ("I4", math.log(2), "refuted"),
        ("I4", 0.5, "holds"),
        ("I5", (0.0, 0.025), "refuted"),
        ("I5", (0.1, 0.025), "holds"),
        ("I6", 0.025, "refuted"),
        ("I6", -0.025, "holds"),
        ("I7", (0.92, 1.39), "refuted"),
        ("I7", (0.92, 0.92), "holds"),
        ("I8", 2.0, "refuted"),
        ("I8", 90.0, "holds"),
        ("I10", 1.4, "refuted"),
        ("I10", 1e-5, "holds"),
        ("I11", (3.9, 3.1), "refuted"),
        ("I11", (3.9, 3.9), "holds"),
        ("H14", 18 / 16, "refuted"),
        ("H14", 2.0, "holds"),
    ],
)
def test_each_claim_can_be_decided_either_way(id_, value, verdict):
    assert find(id_).verdict(value) == verdict


def test_two_claims_of_one_id_are_refused():
    with pytest.raises(ValueError, match="id must be unique, got 'X1'"):
        by_id([large(), large("documented")])


def test_the_five_verdicts_keep_their_names():
    assert VERDICTS == ("holds", "refuted", "depends", "unsourced", "documented")
