"""Whatever is handed in: a sentence for the student, a result, never a lost batch."""

import csv
import json
import sys

import pytest
from styles import STYLES

from minillm.school.checks import all_exercises, examine, exercise
from minillm.school.grading.child import load
from minillm.school.grading.grade import Settings, check_file, grade
from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.process import ProcessSubject
from minillm.school.grading.workshop import Limits, Workshop

GOOD = """
import math
def perplexity(nats, n_tokens): return math.exp(nats / n_tokens)
def corpus_perplexity(nats, n_tokens): return perplexity(sum(nats), sum(n_tokens))
def bits_per_byte(nats, n_bytes): return nats / math.log(2) / n_bytes
"""
POINTS = exercise("01.perplexity").points
QUICK = Limits(seconds=1.0, load_seconds=4.0, memory_mb=256, deaths=2)


@pytest.fixture(scope="module")
def workshop():
    with Workshop() as shop:
        yield shop


def sentences(body: str, shop: Workshop, limits: Limits = QUICK) -> set[str]:
    """What is said about a ``noisy_corpus`` with that body."""
    source = "import os, sys, time, torch, warnings\n"
    source += f"def noisy_corpus(params):\n    {body}\n"
    subject = ProcessSubject(source, shop, limits)
    try:
        result = examine(exercise("01.noisy_corpus"), subject)
    finally:
        subject.close()
    assert result.score == 0 and not result.mistakes
    return {verdict.wrong for verdict in result.verdicts}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "did not end within 1 seconds"),
        ("time.sleep(60)", "did not end within 1 seconds"),
        ("os._exit(0)", "ended its process: an exit, or a crash"),
        ("os.kill(os.getpid(), 9)", "ended its process"),
        ("sys.exit()", "raised SystemExit"),
        ("return noisy_corpus(params)", "raised RecursionError"),
        ("raise KeyError('noise level')", "raised KeyError: 'noise level', at `raise"),
        ("pass", "returned None; is a `return` missing?"),
        ("return 'high'", "returned something else than numbers"),
        ("return print", "returned something unusable: a builtin_function"),
        ("return torch.zeros(3)", "returned shape (3,) where () is right"),
        ("return torch.zeros(()) / 0", "returned NaN or infinity"),
        ("return torch.zeros((), device='meta')", "device meta"),
        ("return torch.zeros((), dtype=torch.complex64)", "is of type complex64"),
        ("return torch.zeros(2, 2).to_sparse()", "or sparse"),
        ("return [noisy_corpus]", "a function cannot be sent"),
        ("x = []; x.append(x); return x", "a value that contains itself"),
        ("return 10 ** 400", "returned NaN or infinity"),
        ("return {}['x']", "raised KeyError"),
        ("raise BaseException", "raised BaseException"),
        ("raise NotImplementedError", "is not written yet"),
    ],
)
def test_a_function_that_misbehaves_is_told_in_a_sentence(body, said, workshop):
    for sentence in sentences(body, workshop):
        assert said in sentence


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no limit elsewhere")
@pytest.mark.parametrize(
    "body",
    [
        "return bytearray(10 ** 11)",
        "return torch.zeros(10 ** 10)",
        "x = [0] * 10 ** 10",
    ],
)
def test_a_function_that_takes_all_memory_is_stopped(body, workshop):
    said = "asked for more memory than a check may use"
    assert sentences(body, workshop) == {said}


def test_patience_ends_after_a_few_deaths(workshop):
    subject = ProcessSubject(
        "def noisy_corpus(p):\n    while True: pass", workshop, QUICK
    )
    result = examine(exercise("01.noisy_corpus"), subject)
    assert "was given up after 2 such ends" in result.verdicts[-1].wrong


@pytest.mark.parametrize(
    "body",
    [
        "return None",
        "return 'high'",
        "return [1, [2]]",
        "return {'loss': 1.0}",
        "return torch.zeros(3)",
        "return torch.zeros((), device='meta')",
        "return print",
        "return params['nise']",
        "return 1 / 0",
        "sys.exit('enough')",
        "raise NotImplementedError",
        "x = []; x.append(x); return x",
    ],
)
def test_notebook_and_grader_say_the_same_of_a_wrong_answer(body, workshop):
    source = f"import sys, torch\ndef noisy_corpus(params):\n    {body}\n"
    namespace = load(source)
    child = ProcessSubject(source, workshop)
    here, there = (
        [v.wrong for v in examine(exercise("01.noisy_corpus"), s).verdicts]
        for s in (InProcess(namespace), child)
    )
    child.close()
    assert here == there and all(here)


def test_imports_may_take_longer_than_a_call_but_not_for_ever(workshop):
    slow = "import time\nK = time.sleep({})\n" + GOOD.replace(
        "math.exp", "K or math.exp"
    )
    for seconds, points in ((1.5, POINTS), (6, 0)):
        subject = ProcessSubject(slow.format(seconds), workshop, QUICK)
        result = examine(exercise("01.perplexity"), subject)
        subject.close()
        assert result.score == points
    assert "did not end within 4 seconds" in result.verdicts[0].wrong


def test_a_crash_costs_its_own_call_only(workshop):
    source = GOOD + "def bits_per_byte(a, b):\n    import os\n    os._exit(1)\n"
    subject = ProcessSubject(source, workshop)
    result = examine(exercise("01.perplexity"), subject)
    subject.close()
    parts = {v.part: bool(v.wrong) for v in result.verdicts}
    assert parts == {
        "perplexity": False,
        "corpus_perplexity": False,
        "bits_per_byte": True,
    }


def test_a_megabyte_of_print_and_a_warning_do_no_harm(workshop):
    source = GOOD.replace(
        "return math",
        "import warnings; warnings.warn('w'); print('x' * 2 ** 20); return math",
        1,
    )
    subject = ProcessSubject(source, workshop)
    result = examine(exercise("01.perplexity"), subject)
    subject.close()
    assert result.score == POINTS
    assert 0 < len(subject.printed) <= subject.limits.printed


def test_an_answer_cannot_change_what_it_is_asked():
    """In process, too, a fixture is a copy."""
    good = exercise("01.next_token_loss").solution["next_token_loss"]

    def spoils(logits, tokens, mask=None):
        loss = good(logits.clone(), tokens, mask)
        logits.detach().zero_()
        tokens.zero_()
        return loss

    subject = InProcess({"next_token_loss": spoils})
    verdicts = examine(exercise("01.next_token_loss"), subject).verdicts
    assert not any(v.wrong for v in verdicts if "gradient" not in v.fixture)


def test_forged_verdicts_on_the_wire_cost_only_the_forger(workshop):
    forger = """
import gc, io
def noisy_corpus(params):
    for thing in gc.get_objects():
        if isinstance(thing, io.BufferedRWPair | io.BufferedWriter):
            thing.write(b"nonsense" * 100)
            thing.flush()
    return 1.0
"""
    subject = ProcessSubject(forger, workshop, QUICK)
    result = examine(exercise("01.noisy_corpus"), subject)
    subject.close()
    assert result.score == 0 and all(v.wrong for v in result.verdicts)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no server elsewhere")
def test_an_answer_that_kills_the_server_costs_only_itself(workshop):
    killer = "import os\ndef noisy_corpus(p):\n    os.kill(os.getppid(), 9)\n"
    subject = ProcessSubject(killer, workshop, QUICK)
    assert examine(exercise("01.noisy_corpus"), subject).score == 0
    subject.close()
    after = ProcessSubject(GOOD, workshop)
    assert examine(exercise("01.perplexity"), after).score == POINTS
    after.close()


def notebook(*cells: str, **keys) -> str:
    """A notebook with those cells of code."""
    made = [{"cell_type": "code", "source": cell.splitlines(True)} for cell in cells]
    return json.dumps({"cells": made, "nbformat": 4, **keys})


CLASS = {
    "good.py": GOOD,
    "notebook.ipynb": notebook("%matplotlib inline\nimport math", "!ls", GOOD),
    "no_metadata.ipynb": json.dumps({"cells": [{"source": GOOD}]}),
    "old_format.ipynb": json.dumps({"worksheets": [{"cells": [{"input": GOOD}]}]}),
    "windows.py": GOOD.replace("\n", "\r\n").encode("utf-8-sig"),
    "utf16.py": GOOD.encode("utf-16"),
    "broken_cell.ipynb": notebook("def f(:\n  pass", GOOD, "%%bash\nrm -rf x"),
    "broken_part.py": "def other(x:\n    return 1\n" + GOOD,
    "training.py": GOOD + "while True:\n    pass\n",
    "plots.py": "import nothing_like_it as plt\n" + GOOD + "plt.show()\nmodel.fit()",
    "twice.ipynb": notebook(GOOD.replace("exp", "log"), GOOD),
    "backwards.ipynb": notebook(*reversed(GOOD.strip().split("\n"))),
    "exits.py": "import sys\nsys.exit()\n" + GOOD,
    "nested.py": GOOD
    + "x = "
    + "+".join("1" * 3000)
    + "\ndef noisy_corpus(p): return x",
    "future.ipynb": notebook(GOOD, "from __future__ import annotations"),
}
BAD = {
    "empty.py": ("", "there is no Python"),
    "empty.ipynb.ipynb": ("", "must be a notebook, got 'damaged JSON'"),
    "list.ipynb": ("[1, 2]", "must be a notebook"),
    "half.ipynb": (notebook(GOOD)[:-40], "must be a notebook"),
    "unfinished.py": ("def perplexity(", "line 1 does not parse"),
    "nul.py": ("x = 1\0", "does not parse"),
    "deep.py": ("(" * 5000, "does not parse"),
    "essay.pdf": ("%PDF", "must be one of .ipynb, .py"),
    "odd_cells.ipynb": ('{"cells": [1, null, {"source": 3}]}', "there is no Python"),
    "odder_cells.ipynb": ('{"cells": 3}', "there is no Python"),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class of good, odd and bad submissions, graded once."""
    folder, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    texts = CLASS | {name: text for name, (text, _) in BAD.items()}
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)
    (folder / "in_a_folder").mkdir()
    (folder / "in_a_folder" / "one.py").write_text(GOOD[: GOOD.index("def bits")])
    (folder / "in_a_folder" / "two.py").write_text(
        "import math\n" + GOOD[GOOD.index("def bits") :]
    )
    (folder / "in_a_folder" / ".ipynb_checkpoints").mkdir()
    (folder / "in_a_folder" / ".ipynb_checkpoints" / "z.py").write_text("perplexity=1")
    (folder / "handed_in_nothing").mkdir()
    grade(folder, out, Settings(limits=QUICK))
    return out


def result_of(out, student: str) -> dict:
    return json.loads((out / "students" / student / "results.json").read_text())


@pytest.mark.parametrize("name", [*CLASS, "in_a_folder"])
def test_odd_files_with_right_answers_get_their_points(name, graded):
    result = result_of(graded, name.rsplit(".", 1)[0])
    scores = {r["exercise"]: r["score"] for r in result["exercises"]}
    assert scores.pop("01.perplexity") == POINTS, result["notes"]
    assert set(scores.values()) == {0} and result["score"] == POINTS


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_a_result_and_a_sentence(name, graded):
    result = result_of(graded, name.rsplit(".", 1)[0])
    assert result["score"] == 0
    assert BAD[name][1] in " ".join(result["notes"])
    assert len(result["exercises"]) == len(all_exercises())


def test_the_result_says_what_protected_the_grader(graded):
    result = result_of(graded, "good")
    assert result["isolation"].startswith("none: a child process")
    assert result["seed"] == 0 and result["course"]


def test_the_result_holds_verdicts_a_hint_and_the_mistake(tmp_path):
    (tmp_path / "ann.py").write_text(GOOD.replace("/ math.log(2) ", ""))
    grade(tmp_path, tmp_path / "out", Settings(seed=4))
    whole = result_of(tmp_path / "out", "ann")
    (result,) = [r for r in whole["exercises"] if r["exercise"] == "01.perplexity"]
    assert result["score"] == 2 and result["points"] == POINTS and whole["seed"] == 4
    assert result["hint"] == exercise("01.perplexity").hints[0]
    assert [m["name"] for m in result["mistakes"]] == ["still nats"]
    parts = {v["part"] for v in result["verdicts"] if not v["ok"]}
    assert parts == {"bits_per_byte"}
    assert all(("off by" in v["wrong"]) != v["ok"] for v in result["verdicts"])


def test_a_doubled_function_is_noted(graded):
    exercises = result_of(graded, "twice")["exercises"]
    notes = [note for r in exercises for note in r["notes"]]
    assert "perplexity is defined 2 times; the last one counts" in notes


def test_the_table_has_a_row_for_each_student_and_a_column_for_each_exercise(graded):
    with open(graded / "grades.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["student", *(e.id for e in all_exercises()), "total"]
    assert len(rows) == len(CLASS) + len(BAD) + 2
    at = {row[0]: row for row in rows}
    assert float(at["good"][-1]) == POINTS and float(at["empty"][-1]) == 0


def test_the_report_names_troubles_and_means(graded):
    page = (graded / "report.txt").read_text(encoding="utf-8")
    assert f"{len(CLASS) + len(BAD) + 2} submissions, " in page
    assert "unfinished: unfinished.py, line 1 does not parse" in page


def test_the_report_counts_mistakes(tmp_path):
    for name in ("ann", "bob"):
        wrong = GOOD.replace("math.log(2) / ", "")
        (tmp_path / f"{name}.py").write_text(wrong.replace("/ 1", ""))
    grade(tmp_path, tmp_path / "out", Settings())
    assert "2  01.perplexity: still nats" in (tmp_path / "out/report.txt").read_text()


def test_an_error_of_the_grader_s_own_costs_one_student(tmp_path, monkeypatch):
    from minillm.school.grading import grade as module

    real = module.read_all

    def fails_for_bob(files):
        if files[0].stem == "bob":
            raise RuntimeError("a fault of ours")
        return real(files)

    monkeypatch.setattr(module, "read_all", fails_for_bob)
    for name in ("ann", "bob", "carol"):
        (tmp_path / f"{name}.py").write_text(GOOD)
    scores = {
        r["student"]: r["score"] for r in grade(tmp_path, tmp_path / "o", Settings())
    }
    assert scores == {"ann": POINTS, "bob": 0, "carol": POINTS}
    assert "a fault of ours" in result_of(tmp_path / "o", "bob")["notes"][0]


def test_a_name_that_looks_like_a_formula_is_made_harmless(tmp_path):
    (tmp_path / "=1+1.py").write_text(GOOD)
    grade(tmp_path, tmp_path / "out", Settings())
    assert "\n'=1+1," in (tmp_path / "out" / "grades.csv").read_text().replace("\r", "")


def test_an_old_report_among_the_submissions_is_no_student(tmp_path):
    (tmp_path / "ann.py").write_text(GOOD)
    for _ in range(2):
        results = grade(tmp_path, tmp_path / "out", Settings())
        assert [r["student"] for r in results] == ["ann"]


def test_nothing_to_grade_is_said_at_the_door(tmp_path):
    with pytest.raises(ValueError, match="submissions must be not empty"):
        grade(tmp_path, tmp_path / "out", Settings())
    with pytest.raises(ValueError, match="submissions must be a folder"):
        grade(tmp_path / "nowhere", tmp_path / "out", Settings())
    with pytest.raises(ValueError, match="chapter must be one of"):
        grade(tmp_path, tmp_path / "out", Settings(chapter="99"))


def test_a_whole_class_s_best_student_gets_everything(tmp_path):
    import textwrap

    parts = [textwrap.dedent(next(iter(s.values()))) for s in STYLES.values()]
    (tmp_path / "best.ipynb").write_text(notebook(*parts))
    (result,) = grade(tmp_path, tmp_path / "out", Settings(slow=True))
    assert result["score"] == result["points"]
    results = check_file(tmp_path / "best.ipynb", Settings(slow=True))
    assert [r.exercise.id for r in results] == [e.id for e in all_exercises()]
    assert all(r.score == r.exercise.points for r in results)
