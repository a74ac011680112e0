"""What a student reads: right, wrong, the name of the mistake, the next hint."""

import pytest
import torch

from minillm.__main__ import main
from minillm.school.checks import check, exercise, hint, params
from minillm.school.checks.compare import differs

LOSS = exercise("01.next_token_loss")
RIGHT = LOSS.solution["next_token_loss"]
NO_SHIFT = LOSS.mutants["next_token_loss"][0]


def test_a_right_answer_is_told_in_one_line(capsys):
    check("01.next_token_loss", RIGHT)
    assert capsys.readouterr().out == "01.next_token_loss: 12 of 12 right\n"


def test_a_known_mistake_is_named_with_the_next_hint(capsys):
    check("01.next_token_loss", NO_SHIFT)
    told = capsys.readouterr().out
    assert "wrong: " in told and "This looks like: no shift. Each position" in told
    assert "Next: hint('01.next_token_loss', 1)" in told
    assert LOSS.hints[0][:30] not in told


def test_a_hint_comes_when_it_is_asked_for_and_no_other(capsys):
    check("01.next_token_loss", NO_SHIFT, hint=2)
    told = " ".join(capsys.readouterr().out.split())
    assert LOSS.hints[1] in told and LOSS.hints[2] not in told
    assert "Next: hint('01.next_token_loss', 3)" in told
    hint("01.next_token_loss", 3)
    assert LOSS.hints[2] in " ".join(capsys.readouterr().out.split())


def test_what_is_right_is_told_beside_what_is_wrong(capsys):
    names = exercise("01.perplexity").solution
    check("01.perplexity", names["perplexity"], max, names["bits_per_byte"])
    told = capsys.readouterr().out
    assert "6 of 9 right" in told and "right: perplexity, text 0" in told
    assert "wrong: corpus_perplexity, two documents" in told


def test_what_is_told_does_not_depend_on_the_run(capsys):
    check("01.next_token_loss", NO_SHIFT)
    first = capsys.readouterr().out
    torch.manual_seed(5)
    check("01.next_token_loss", NO_SHIFT)
    assert capsys.readouterr().out == first
    assert max(map(len, first.splitlines())) <= 88


def test_an_experiment_is_replayed_only_when_asked(capsys):
    asked = exercise("01.emergence")
    weak = asked.mutants["emergence"][0]
    check("01.emergence", weak)
    assert "not replayed" in capsys.readouterr().out
    check("01.emergence", weak, slow=True)
    assert "This looks like: answers of one token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("01.next_token_los", RIGHT), "did you mean 01.next_token_loss"),
        (("01.next_token_loss",), "answers must be next_token_loss"),
        (("01.next_token_loss", 3), "answers must be next_token_loss"),
        (("01.perplexity", max), "answers must be perplexity, corpus_perplexity"),
    ],
)
def test_a_wrong_call_is_told_at_the_door(args, said):
    with pytest.raises(ValueError, match=said):
        check(*args)


def test_hints_have_three_levels():
    for level in (0, 4, "1"):
        with pytest.raises(ValueError, match="must be 1, 2 or 3"):
            hint("01.next_token_loss", level)
    with pytest.raises(ValueError, match=r"hint must be in 0\.\.3"):
        check("01.next_token_loss", RIGHT, hint=4)


def test_each_student_has_own_numbers():
    drawn = [params("01.noisy_corpus", seed)["noise"] for seed in range(20)]
    assert len(set(drawn)) > 5
    assert params("01.noisy_corpus", 3) == params("01.noisy_corpus", 3)
    with pytest.raises(ValueError, match="one to derive a number"):
        params("01.next_token_loss")


def test_a_number_that_holds_for_one_student_only_is_not_enough():
    asked = exercise("01.noisy_corpus")
    mine = asked.solution["noisy_corpus"](params("01.noisy_corpus", 3))
    from minillm.school.checks import examine
    from minillm.school.grading.inprocess import InProcess

    result = examine(asked, InProcess({"noisy_corpus": lambda _: mine}), seed=3)
    wrong = {v.fixture: bool(v.wrong) for v in result.verdicts}
    assert wrong["your numbers"] is False and sum(wrong.values()) == 2
    assert result.score == 0


def test_the_command_checks_a_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def span_corruption(tokens, spans, sentinels): return tokens\n")
    assert main(["check", str(file), "--hint", "1"]) == 1
    told = capsys.readouterr().out
    assert "01.span_corruption: 0 of 5 right" in told and "Hint 1 of 3" in told
    assert "next_token_loss" not in told
    file.write_text("from minillm.training.objectives import span_corruption\n")
    assert main(["check", str(file)]) == 0
    assert "is imported, not written here" in capsys.readouterr().out


def test_the_command_says_what_a_file_lacks(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def something_else(): pass\n")
    assert main(["check", str(file)]) == 2
    assert "an answer to one of next_token_loss" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.py")]) == 2
    assert "none.py" in capsys.readouterr().err


def test_the_command_grades_a_folder(tmp_path, capsys):
    (tmp_path / "ann.py").write_text("def perplexity(a, b): return 1\n")
    out = tmp_path / "report"
    assert main(["grade", str(tmp_path), "--out", str(out), "--chapter", "01"]) == 0
    assert "1 submissions graded" in capsys.readouterr().out
    assert (out / "students" / "ann" / "results.json").exists()


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        ([[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]]), ""),
        ([torch.tensor(1.0), 2], torch.tensor([1.0, 2.0]), ""),
        (1.00011, 1.0, "is off by 0.011 %"),
        (1.00009, 1.0, ""),
        ({"a": 1.0, "b": 2e9}, {"a": 1.1, "b": 2e9}, "is off by 9.1 % (a)"),
        ({"a": 1.0}, {"b": 1.0}, "returned a dict"),
        ([1, [2]], torch.tensor([1, 2]), "something else than numbers"),
        (torch.ones(2), [torch.ones(2)], "returned a tensor of shape"),
        ((1, 2, 3), (torch.tensor(1), torch.tensor(2)), "returned a tuple of 3"),
        (float("nan"), 1.0, "NaN or infinity"),
        (float("inf"), float("inf"), ""),
        (float("-inf"), float("inf"), "is off by"),
        (None, 1.0, "is a `return` missing"),
        ([], torch.zeros(0), ""),
        (True, torch.tensor(1), ""),
    ],
)
def test_differences_are_told_in_words(answer, expected, said):
    told = differs(answer, expected)
    assert told == "" if said == "" else said in told
