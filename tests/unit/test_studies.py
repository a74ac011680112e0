"""Studies: kept with a key of their code, gone on with, and stale when it changes."""

import ast
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from minillm.school import code_key as code_key_module
from minillm.school import studies as studies_module
from minillm.school.code_key import bare, code_key, imported, modules_behind
from minillm.school.studies import (
    Study,
    is_stale,
    load_study,
    main,
    result_file,
    run_study,
)
from minillm.school.tinytext import tiny_text
from minillm.world import WorldConfig

ROOT = Path(__file__).resolve().parents[2]

# --- what counts as code ------------------------------------------------------------

SOURCE = '''"""Module."""

import os  # why
# a remark

def f(x):
    """Docstring

    of three lines."""
    # another
    text = """# no comment

    a blank line within"""  # one

    return f"{x!r:>{10}} # {text}"


@decorator
class A:
    "Short."

    async def g(self):
        """Doc."""
        return (
            1,  # first

            2,
        )
'''
BARE = '''import os
def f(x):
    text = """# no comment

    a blank line within"""
    return f"{x!r:>{10}} # {text}"
@decorator
class A:
    async def g(self):
        return (
            1,
            2,
        )'''


def test_source_is_stripped_to_the_same_lines_on_every_python():
    assert bare(SOURCE) == BARE
    assert bare(BARE) == BARE  # and nothing is lost that is no remark
    assert ast.dump(ast.parse(BARE)) != ast.dump(ast.parse(BARE.replace("2", "3")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # why", ""),
        ("# a remark", "# a remark\n# and one more\n\n"),
        ("Docstring", "Longer\n\n    docstring"),
        ("import os  # why", "import os"),
        ("            1,  # first\n\n", "            1,\n"),
    ],
)
def test_remarks_and_blank_lines_are_no_code(old, new):
    assert SOURCE.replace(old, new) != SOURCE
    assert bare(SOURCE.replace(old, new)) == BARE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# no comment", "# a comment"),
        ("# no comment\n\n", "# no comment\n"),  # blank, but within a string
        ("# {text}", "#{text}"),
        ("2,", "3,"),
        ("async def", "def"),
        ("@decorator\n", ""),
        ("    return f", "    if x:\n        return f"),
    ],
)
def test_everything_else_is(old, new):
    assert SOURCE.replace(old, new) != SOURCE
    assert bare(SOURCE.replace(old, new)) != BARE


def test_a_form_feed_or_a_line_separator_in_a_string_ends_no_line():
    for character in ("\x0c", "\u2028", "\x85"):
        source = f'x = "{character}"\ndef f():\n    "Doc."\n    return 1\n'
        assert bare(source) == source.replace('    "Doc."\n', "").rstrip()


# --- what a recipe depends on -------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A small package in which the recipe needs ``a``, which needs ``b``, not ``c``."""
    folder = tmp_path.resolve() / "minillm"
    files = {
        "__init__.py": "",
        "room/__init__.py": "",
        "room/a.py": "def f():\n    from minillm.other import b\n    return b.x\n",
        "room/c.py": "y = 1\n",
        "other/__init__.py": "",
        "other/b.py": "import minillm.room.a\nx = 1\n",  # a circle
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "01_recipe.py").write_text("from minillm.room.a import f\n")
    monkeypatch.setattr(code_key_module, "PACKAGE", folder)
    return folder


def test_the_modules_behind_a_recipe_are_found_through_others(package):
    recipe = package.parent / "01_recipe.py"
    names = {p.relative_to(package.parent).as_posix() for p in modules_behind(recipe)}
    room, other = "minillm/room/", "minillm/other/"
    expected = {f"{room}a.py", f"{other}b.py", "01_recipe.py"}
    expected |= {f"{room}__init__.py", "minillm/__init__.py"}  # b imports plainly
    assert names == expected


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("room/a.py", "from minillm.other import b\n", True),
        ("other/b.py", "import minillm.room.a\nx = 2\n", True),  # seen only through a
        ("other/b.py", '"""New."""\nimport minillm.room.a\n\nx = 1  # why\n', False),
        ("room/__init__.py", "import os\n", True),
        ("other/__init__.py", "from minillm.room.c import y\n", False),
        ("room/c.py", "y = 2\n", False),
        ("room/d.py", "z = 1\n", False),
        ("../01_recipe.py", "from minillm.room.a import f\nf()\n", True),
        ("../01_recipe.py", "# As before\nfrom minillm.room.a import f\n", False),
    ],
)
def test_the_key_changes_with_the_code_behind_a_recipe_only(
    package, file, text, changes
):
    before = code_key(package.parent / "01_recipe.py")
    (package / file).write_text(text)
    assert (code_key(package.parent / "01_recipe.py") != before) == changes


def test_code_that_moves_to_another_module_changes_the_key(package):
    recipe = package.parent / "01_recipe.py"
    recipe.write_text("from minillm.room import c, d\n")
    before = code_key(recipe)
    (package / "room/c.py").rename(package / "room/d.py")
    assert code_key(recipe) != before


def test_a_recipe_that_is_called_like_a_module_does_not_hide_it(package):
    recipe, module = package.parent / "same.py", package / "same.py"
    module.write_text("x = 1\n")
    recipe.write_text("from minillm.same import x\n")
    before = code_key(recipe)
    module.write_text("x = 2\n")
    assert code_key(recipe) != before


def test_a_path_may_be_relative_even_of_a_module_that_others_import(
    package, monkeypatch
):
    expected = code_key(package / "room/a.py")
    monkeypatch.chdir(package.parent)
    assert code_key("minillm/room/a.py") == expected


def test_the_key_changes_with_torch_but_not_with_how_torch_was_built(
    package, monkeypatch
):
    recipe = package.parent / "01_recipe.py"
    keys = []
    for version in ("9.9.0", "9.9.0+cpu", "9.9.0+cu130", "9.9.1"):
        monkeypatch.setattr(torch, "__version__", version)
        keys.append(code_key(recipe))
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_the_key_does_not_depend_on_where_the_checkout_lies(
    package, tmp_path, monkeypatch
):
    before = code_key(package.parent / "01_recipe.py")
    for folder in ("aa", "zz/studies"):  # a recipe before and behind the package
        elsewhere = tmp_path.resolve() / folder / "01_recipe.py"
        elsewhere.parent.mkdir(parents=True)
        elsewhere.write_text((package.parent / "01_recipe.py").read_text())
        assert code_key(elsewhere) == before
    monkeypatch.chdir(package.parent)
    assert code_key("01_recipe.py") == before
    moved = package.rename(tmp_path.resolve() / "zz" / "minillm")
    monkeypatch.setattr(code_key_module, "PACKAGE", moved)
    assert code_key("01_recipe.py") == before


def test_a_class_is_not_taken_for_a_module_where_file_names_ignore_case(
    package, monkeypatch
):
    expected = [package / "room/__init__.py", package / "room/a.py"]
    monkeypatch.setattr(
        Path, "is_file", lambda path: True
    )  # as a Mac would say of A.py
    assert imported("from minillm.room import a, A, C") == expected


@pytest.mark.parametrize(
    ("init", "names"),
    [
        ("from minillm.room.c import y\n", ["room/c.py"]),
        ("from minillm.room.a import f\nfrom minillm.room.c import y\n", ["room/c.py"]),
        ("from minillm.room.c import z as y\n", ["room/c.py"]),
        ("from minillm.other import y\n", ["other/__init__.py"]),  # passed on twice
        ("y = 1\n", ["room/__init__.py"]),
        ("from minillm.room.c import *\n", ["room/__init__.py"]),
    ],
)
def test_a_name_that_a_room_passes_on_leads_to_the_module_it_stands_in(
    package, init, names
):
    (package / "other/__init__.py").write_text("y = 1\n")
    (package / "room/__init__.py").write_text(init)
    found = imported("from minillm.room import y")
    assert found == [package / name for name in names]


def test_what_a_room_passes_on_counts_and_what_else_it_offers_does_not(package):
    recipe, init = package.parent / "01_recipe.py", package / "other/__init__.py"
    (package / "room/a.py").write_text("")
    (package / "other/b.py").write_text("x = 1\n")
    recipe.write_text("from minillm.other import x\n")
    init.write_text("from minillm.other.b import x\n")
    before = code_key(recipe)
    init.write_text("from minillm.other.b import x\nfrom minillm.room.c import y\n")
    assert code_key(recipe) == before
    (package / "other/b.py").write_text("x = 2\n")
    assert code_key(recipe) != before


def test_rooms_do_nothing_but_pass_names_on():
    # code_key looks through them, so that nothing may happen in them.
    for file in (ROOT / "minillm").rglob("__init__.py"):
        _, *rest = ast.parse(file.read_text(encoding="utf-8")).body
        quiet = (ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign)
        assert all(isinstance(node, quiet) for node in rest), file


def test_no_module_of_ours_imports_relatively_so_the_key_sees_them_all():
    for file in (ROOT / "minillm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), file


def test_the_key_of_a_real_study_covers_model_trainer_and_world():
    names = {p.name for p in modules_behind(ROOT / "studies" / "01_optimizers.py")}
    assert {"gpt.py", "trainer.py", "muon.py", "tinyworld.py", "floor.py"} <= names
    assert "tour.py" not in names and "doctor.py" not in names


def test_whoever_loads_a_model_for_a_study_names_its_recipe():
    # The zoo itself is no part of a key, so its words for recipes must not be used.
    for study in (ROOT / "studies").glob("[0-9]*.py"):
        for module in modules_behind(study):
            text = bare(module.read_text(encoding="utf-8"))
            assert 'zoo.load("' not in text, f"{module.name}: load a recipe, Sft()"


# --- running ------------------------------------------------------------------------

ARMS = {"small": {"C": 1}, "large": {"C": 10}}
TEXT = "import minillm.errors\n"


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """The file of a study, in a folder of its own."""
    monkeypatch.setattr(studies_module, "STUDIES", tmp_path)
    file = tmp_path / "01_size.py"
    file.write_text(TEXT)
    return file


class Runs:
    """A run that takes notes, and is interrupted at the given call."""

    def __init__(self, stop_at: int | None = None, error=KeyboardInterrupt):
        self.calls, self.stop_at, self.error = [], stop_at, error

    def __call__(self, seed: int, C: int) -> dict:
        if len(self.calls) == self.stop_at:
            raise self.error
        self.calls.append((seed, C))
        return {"loss": seed + C, "by rank": {"1-10": [0.5, C]}}


def go(study: Path, run, arms=None, seeds=(0, 1, 2), question="Which?") -> Study:
    return run_study(study, question, arms or ARMS, seeds, run)


def files(study: Path) -> set[str]:
    return {path.name for path in (study.parent / "results").iterdir()}


def test_every_arm_has_every_seed_and_seeds_are_the_outer_loop(study):
    run = Runs()
    found = go(study, run)
    assert run.calls == [(0, 1), (0, 10), (1, 1), (1, 10), (2, 1), (2, 10)]
    assert found.values("large", "loss") == [10, 11, 12]
    assert (found.mean("large", "loss"), found.spread("large", "loss")) == (11, 1)
    assert found.settings == ARMS and found.question == "Which?"
    assert (
        found.key == code_key(study) and f"torch {torch.__version__}" in found.machine
    )
    assert all(r["cpu_seconds"] >= 0 and r["by rank"] for r in found.runs)
    assert found == load_study(study) == load_study("01_size")
    assert files(study) == {"01_size.json"}  # nothing partial is left


def test_an_arm_or_a_measure_that_there_is_not_is_an_error(study):
    found = go(study, Runs())
    with pytest.raises(KeyError, match="no arm 'huge' among"):
        found.values("huge", "loss")
    with pytest.raises(KeyError, match="gain"):
        found.values("large", "gain")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_study_goes_on_without_running_anything_twice(study, error):
    first, second = Runs(stop_at=3, error=error), Runs()
    with pytest.raises(error):
        go(study, first)
    assert files(study) == {"01_size.partial.json"}
    found = go(study, second)
    assert first.calls + second.calls == [(s, C) for s in range(3) for C in (1, 10)]
    assert found.values("small", "loss") == [1, 2, 3] and len(found.runs) == 6
    assert files(study) == {"01_size.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"arms": {"small": {"C": 2}, "large": {"C": 10}}},
        {"arms": {"small": {"C": 1}, "huge": {"C": 10}}},
        {"question": "Which one?"},
        {"code": "import minillm.files\n"},
    ],
    ids=str,
)
def test_what_was_run_with_other_settings_or_code_is_not_gone_on_with(study, change):
    with pytest.raises(KeyboardInterrupt):
        go(study, Runs(stop_at=3))
    study.write_text(change.pop("code", TEXT))
    again = Runs()
    found = go(study, again, **change)
    assert len(again.calls) == len(found.runs) == 6


def test_a_remark_in_the_code_does_not_cost_what_has_been_run(study):
    with pytest.raises(KeyboardInterrupt):
        go(study, Runs(stop_at=3))
    study.write_text("# why\n" + TEXT)
    again = Runs()
    go(study, again)
    assert len(again.calls) == 3


def test_seeds_that_are_asked_for_no_longer_are_left_out(study):
    with pytest.raises(KeyboardInterrupt):
        go(study, Runs(stop_at=5))  # seeds 0 and 1, and 2 for one arm
    again = Runs()
    found = go(study, again, seeds=(1, 5, 6))
    assert [r["seed"] for r in found.runs] == [1, 1, 5, 5, 6, 6]
    assert again.calls == [(s, C) for s in (5, 6) for C in (1, 10)]


@pytest.mark.parametrize("rubbish", ["", "{", "[]", "null", "\x00"])
def test_a_damaged_partial_file_is_begun_anew(study, rubbish):
    partial = result_file(study).with_suffix(".partial.json")
    partial.parent.mkdir()
    partial.write_text(rubbish)
    assert len(go(study, Runs()).runs) == 6


def test_results_are_replaced_as_a_whole_or_not_at_all(study, monkeypatch):
    kept = go(study, Runs())

    def half(path, flags=None):
        raise OSError("the disk has gone")

    monkeypatch.setattr("os.replace", half)
    with pytest.raises(OSError, match="the disk has gone"):
        go(study, Runs(), question="Anew?")
    monkeypatch.undo()
    monkeypatch.setattr(studies_module, "STUDIES", study.parent)
    assert load_study(study) == kept and files(study) == {"01_size.json"}


def test_a_measure_that_no_file_can_hold_costs_one_run_and_not_all(study):
    first = Runs()
    with pytest.raises(TypeError):
        go(
            study,
            lambda seed, C: first(seed, C) if seed < 1 else {"loss": torch.ones(1)},
        )
    again = Runs()
    go(study, again)
    assert len(again.calls) == 4


@pytest.mark.parametrize("seeds", [(), (0, 1), (0, 0, 0, 1)])
def test_less_than_three_seeds_are_refused_before_anything_is_run(study, seeds):
    run = Runs()
    with pytest.raises(ValueError, match="seeds must be at least three"):
        go(study, run, seeds=seeds)
    assert run.calls == []


def test_a_study_without_arms_is_refused(study):
    with pytest.raises(ValueError, match="arms must be"):
        run_study(study, "Which?", {}, (0, 1, 2), Runs())


# --- staleness ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "stale"),
    [
        (TEXT, False),
        ("# why\n\n" + TEXT, False),
        ("import minillm.files\n", True),
        (TEXT + "x = 1\n", True),
    ],
)
def test_a_study_is_stale_if_its_code_is_another(study, after, stale):
    assert is_stale(study)  # never run
    go(study, Runs())
    study.write_text(after)
    assert is_stale(study) == stale


def test_an_interrupted_study_is_stale(study):
    with pytest.raises(KeyboardInterrupt):
        go(study, Runs(stop_at=5))
    assert is_stale(study)


def test_a_study_that_was_never_run_says_how_to_run_it(study):
    with pytest.raises(FileNotFoundError, match=r"run `python studies/01_size.py`"):
        load_study(study)


RECIPE = """
from minillm.school.studies import run_study
if __name__ == "__main__":
    run_study(__file__, "?", {"a": {}}, (0, 1, 2), lambda seed: {"loss": seed})
"""


def test_what_is_stale_is_named_and_run_if_asked(study, capsys):
    study.write_text(RECIPE)
    main()
    assert capsys.readouterr().out == "studies/01_size.py: never run\n"
    assert is_stale(study)
    main(run_stale=True)
    assert load_study(study).values("a", "loss") == [0, 1, 2]
    capsys.readouterr()
    main()
    assert capsys.readouterr().out == "studies/01_size.py: as the code is\n"
    study.write_text(RECIPE + "x = 1\n")
    main()
    assert "stale: the code has changed since" in capsys.readouterr().out


# --- the text, and the studies themselves -------------------------------------------

SMALL = WorldConfig(people=20, silent=5, cities=4)


def test_equal_settings_give_equal_texts():
    settings = {
        "config": SMALL,
        "documents": 200,
        "test": 5,
        "vocab_size": 600,
        "T": 96,
    }
    one, other = tiny_text(**settings), tiny_text(**settings)
    assert one.rows.equal(other.rows) and one.tokenizer == other.tokenizer
    assert one.test.accounts == other.test.accounts and one.n_documents == 200
    texts = [[d.text for d in of.test.documents] for of in (one, other)]
    assert texts[0] == texts[1] and len(texts[0]) == 5
    assert one.rows.dtype == torch.int32 and one.rows.shape[1] == 96
    assert (one.rows[:, 0] == one.tokenizer.eot).all()
    changed = tiny_text(**(settings | {"config": WorldConfig(seed="b", people=20)}))
    assert changed.test.accounts != one.test.accounts


def test_the_first_row_is_the_first_documents_and_the_test_is_another_stream():
    text = tiny_text(SMALL, documents=200, test=50, vocab_size=600)
    first = list(text.world.documents(200))
    start = text.tokenizer.encode(first[0].text)
    assert text.rows[0, 1 : 1 + len(start)].tolist() == start
    assert text.test.documents == list(text.world.documents(50, "test"))
    assert text.test.documents != first[:50]
    for document, account in zip(text.test.documents, text.test.accounts, strict=True):
        assert [t.token for t in account] == text.tokenizer.encode(document.text)


def test_rows_that_cannot_hold_the_documents_are_refused():
    with pytest.raises(ValueError, match=r"T must be at least .*got 16"):
        tiny_text(SMALL, documents=200, test=50, vocab_size=600, T=16)


@pytest.mark.parametrize("counts", [{"documents": 0}, {"test": 0}, {"test": 1.5}])
def test_texts_of_nothing_are_refused(counts):
    with pytest.raises(ValueError, match="must be an int of at least 1"):
        tiny_text(**counts)


@pytest.mark.parametrize(
    ("name", "arms"),
    [("01_optimizers", ("ADAMW", "MUON")), ("02_size_and_recall", ("WIDTHS",))],
)
def test_every_arm_of_every_study_runs(name, arms, monkeypatch):
    spec = importlib.util.spec_from_file_location("study", ROOT / f"studies/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = tiny_text(SMALL, documents=300, test=5, vocab_size=600)
    monkeypatch.setattr(module, "text", lambda: small)
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "B", 2)
    for settings in {
        k: v for arm in arms for k, v in vars(module)[arm].items()
    }.values():
        measured = json.loads(json.dumps(module.run(0, **settings)))
        numbers = [v for v in measured.values() if isinstance(v, int | float)]
        assert len(numbers) >= 3 and all(map(math.isfinite, numbers))


def test_every_study_in_the_folder_is_tried():
    # 03: test_tiny_tour.py; 04: test_objectives_study.py; 06 to 09:
    # test_preferring.py; 05, 10, 11: test_alignment_studies.py;
    # 12 to 14: test_compression_studies.py; 15: test_moe_study.py;
    # 16: test_scaling_study.py
    names = {file.stem for file in (ROOT / "studies").glob("[0-9]*.py")}
    early = {"01_optimizers", "02_size_and_recall", "03_tour", "04_objectives"}
    preferences = {"06_dpo_family", "07_displacement", "08_where_dpo_fails"}
    late = {"05_closed_world", "10_overoptimisation", "11_equal_tokens"}
    small = {"15_moe", "12_planted_rank", "13_peft_table", "14_quality_against_bits"}
    assert names == early | preferences | {"09_annotators", "16_scaling"} | late | small


def test_a_study_does_not_grow_old_with_the_code_that_keeps_its_results(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, line in ((one, "LIMIT = 1"), (two, "LIMIT = 2")):
        (folder / "school").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "school" / "__init__.py").touch()
        (folder / "school" / "studies.py").write_text(line)
        (folder / "rule.py").write_text("RULE = 1")
        (folder / "study.py").write_text(
            "from minillm.school import studies\nimport minillm.rule"
        )
    keys = []
    for folder in (one, two):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minillm.school.code_key.PACKAGE", folder)
            keys.append(code_key(folder / "study.py"))
    assert keys[0] == keys[1]
