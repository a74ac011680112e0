"""The zoo: trained once, whoever asks; whole or not there; as new as its code."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm.__main__ import main
from minillm.alignment.reward_pairs import response_ids
from minillm.school import tiny_sft, tiny_tour, zoo
from minillm.school.code_key import modules_behind
from minillm.school.options import SIZES, TourOptions
from minillm.school.pipeline import Run
from minillm.school.recipes import base as base_recipe
from minillm.school.recipes import sft as sft_recipe
from minillm.school.recipes.base import Base
from minillm.school.recipes.reward import Reward
from minillm.school.recipes.sft import Sft

ROOT = Path(__file__).resolve().parents[2]
TINY = Base(steps=2, documents=400, B=2, vocab_size=800, n_layer=1, n_head=2, n_embd=8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.delenv("MINILLM_ZOO_SEED", raising=False)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch) -> list[Base]:
    """Every training that takes place, by its recipe."""
    done, train = [], Base.train

    def counted(self, load, progress):
        done.append(self)
        return train(self, load, progress)

    monkeypatch.setattr(Base, "train", counted)
    return done


def files(cache: Path) -> list[str]:
    """What lies in the cache, locks aside."""
    found = (path.name for path in (cache / "zoo").iterdir())
    return sorted(name for name in found if not name.endswith(".lock"))


def same(one, other) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


# --- once is enough


def test_a_model_is_trained_once_and_read_afterwards(trainings):
    first, second = (zoo.load(TINY, progress=False) for _ in range(2))
    assert len(trainings) == 1
    assert same(first, second)
    assert first.model.config == second.model.config
    assert first.tokenizer == second.tokenizer and first.config == second.config


def test_models_come_ready_for_use_and_belong_to_the_caller(trainings):
    first, second = (zoo.load(TINY, progress=False) for _ in range(2))
    assert not first.model.training and not second.model.training
    with torch.no_grad():
        second.model.embed_tokens.weight.zero_()
    assert not same(second, zoo.load(TINY, progress=False))


def test_the_callers_random_numbers_do_not_depend_on_the_cache(trainings):
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        zoo.load(TINY, progress=False)
        draws.append(torch.rand(3))
    assert len(trainings) == 1 and torch.equal(*draws)


def test_a_trained_model_does_not_depend_on_what_the_caller_drew():
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(zoo.load(TINY, progress=False))
        zoo.model_file(TINY).unlink()
    assert same(*models)


def test_known_text_is_of_the_world_that_the_model_has_read_about():
    model = zoo.load(TINY, progress=False)
    known = model.known(n=5)
    assert len(known.documents) == 5
    assert [d.text for d in known.documents] == [
        d.text for d in model.world.documents(5, "test")
    ]


ASK = """
import sys
from minillm.school import zoo
from minillm.school.recipes.base import Base
train = Base.train
def told(*arguments):
    print("trained", flush=True)
    return train(*arguments)
Base.train = told
settings = {settings}
zoo.load(Base(**settings), progress=False)
print("done")
"""
SETTINGS = {"steps": 2, "documents": 400, "B": 2, "vocab_size": 800, "n_layer": 1}
SETTINGS |= {"n_head": 2, "n_embd": 8}


def ask(settings: dict) -> subprocess.Popen:
    """Another process that wants a model."""
    command = [sys.executable, "-c", ASK.format(settings=settings)]
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=there, **pipes)


@pytest.mark.slow
def test_four_processes_that_ask_at_once_train_once():
    processes = [ask(SETTINGS) for _ in range(4)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [p.returncode for p in processes] == [0] * 4, said
    words = "".join(out for out, _ in said)
    assert words.count("trained") == 1 and words.count("done") == 4


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_neither_file_nor_lock(cache, trainings):
    process = ask(SETTINGS | {"steps": 100_000})
    assert process.stdout.readline() == "trained\n"
    process.kill()
    process.communicate(timeout=60)
    assert files(cache) == []
    # The operating system has freed the lock, or this would wait for ever.
    finished = threading.Event()
    lock = zoo.FileLock(next((cache / "zoo").glob("*.lock")), timeout=30)
    with lock:
        finished.set()
    assert finished.is_set()


def test_an_interruption_leaves_nothing_and_the_next_call_trains(
    cache, trainings, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(zoo, "save_tensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            zoo.load(TINY, progress=False)
    assert files(cache) == []
    zoo.load(TINY, progress=False)
    assert len(trainings) == 2 and files(cache) == [zoo.model_file(TINY).name]


def test_who_waited_for_another_does_not_train_again(trainings, monkeypatch):
    """Between looking for the file and getting the lock, another made the file."""
    real = zoo._lock

    def slow(path, progress):
        monkeypatch.setattr(zoo, "_lock", real)
        zoo.load(TINY, progress=False)
        return real(path, progress)

    monkeypatch.setattr(zoo, "_lock", slow)
    zoo.load(TINY, progress=False)
    assert len(trainings) == 1


def test_who_waits_is_told_so(capsys):
    path = zoo.model_file(TINY)
    path.parent.mkdir(parents=True)
    held = threading.Event()

    def hold():
        with zoo.FileLock(path.with_suffix(".lock")):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    assert held.wait(30)
    with zoo._lock(path, progress=True):
        assert "Another process is training" in capsys.readouterr().err
    with zoo._lock(path, progress=True):
        assert capsys.readouterr().err == ""


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    zoo.save_tensors(path, {"w": torch.ones(2)}, {"format": "another"})


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign])
def test_a_damaged_file_is_never_used_and_is_made_again(trainings, capsys, damage):
    good = zoo.load(TINY, progress=False)
    damage(zoo.model_file(TINY))
    again = zoo.load(TINY, progress=False)
    assert f"{zoo.model_file(TINY)} is damaged" in capsys.readouterr().err
    assert same(good, again) and same(again, zoo.load(TINY, progress=False))
    assert len(trainings) == 2


def test_nothing_is_called_damaged_that_was_not_there(capsys):
    zoo.load(TINY, progress=False)
    assert capsys.readouterr().err == ""


# --- the key


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"seed": 1}, {"n_embd": 16}, {"documents": 401}],
)
def test_other_settings_are_another_model(change):
    assert zoo.model_file(replace(TINY, **change)) != zoo.model_file(TINY)


def test_a_setting_of_the_world_or_of_the_model_behind_it_is_a_setting():
    world = replace(TINY.world, people=TINY.world.people + 1)
    assert zoo.model_file(replace(TINY, world=world)) != zoo.model_file(TINY)
    sft = Sft(base=TINY)
    assert zoo.model_file(Sft(base=replace(TINY, steps=3))) != zoo.model_file(sft)


def test_other_code_is_another_model(monkeypatch):
    before = zoo.model_file(TINY)
    monkeypatch.setattr(zoo, "code_key", lambda path: "another key")
    assert zoo.model_file(TINY) != before


@pytest.mark.parametrize("recipe", [base_recipe, sft_recipe])
def test_the_key_does_not_hang_on_how_results_are_shown_or_kept(recipe):
    behind = modules_behind(recipe.__file__)
    school = {path.stem for path in behind if path.parent.name == "school"}
    assert "tinytext" in school  # or nothing at all was looked at
    assert not school & {"zoo", "show", "report", "tiny_report", "tiny_tour"}


def test_authors_can_change_the_seed_of_every_named_model(monkeypatch):
    monkeypatch.setitem(zoo.RECIPES, "base", TINY)
    zero = zoo.load("base", progress=False)
    monkeypatch.setenv("MINILLM_ZOO_SEED", "1")
    one = zoo.load("base", progress=False)
    assert not same(zero, one)
    assert same(one, zoo.load(replace(TINY, seed=1), progress=False))
    assert same(zero, zoo.load("base", progress=False, seed=0))  # said at the call


# --- the recipes


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \('base', .* 'arithmetic'\)"):
        zoo.load("bse")


def test_the_base_model_has_the_settings_of_the_tour():
    tour, base = TourOptions(), Base()
    assert base_recipe.TRAINING is tiny_tour.TRAINING
    assert (base.n_layer, base.n_head, base.n_embd) == SIZES[tour.size]
    shapes = (base.B, base.T, base.vocab_size, base.seed)
    assert shapes == (tour.batch, tour.context, tour.vocab_size, tour.seed)


def test_the_base_model_reads_its_documents_once():
    base = Base(documents=4_000)
    rows = base_recipe.tiny_text(base.world, 4_000, 1, base.vocab_size, base.T).rows
    wanted = Base().steps * base.B / (Base().documents / 4_000)
    assert 0.9 < wanted / len(rows) < 1.0


def test_the_assistant_learns_as_in_the_tour(monkeypatch, tmp_path):
    """Both are asked for what they would train on, and how."""
    asked = []

    def stub(model, examples, config, **_):
        asked.append((examples[0].tokens, config))
        raise InterruptedError

    base = zoo.load(replace(TINY, vocab_size=1024), progress=False)
    monkeypatch.setattr(sft_recipe, "finetune", stub)
    monkeypatch.setattr(tiny_sft, "finetune", stub)
    monkeypatch.setattr(tiny_sft, "EXAMPLES", 64)
    run = Run(tmp_path, {})
    with pytest.raises(InterruptedError):
        Sft(base=TINY, examples=64).train(lambda *_: base, progress=False)
    with pytest.raises(InterruptedError):
        tiny_sft.fine_tune(run, TourOptions(), base, base.model, resumed=False)
    (ours, our_config), (theirs, their_config) = asked
    assert torch.equal(ours, theirs) and ours.shape[0] == tiny_sft.BATCH
    assert our_config == their_config and our_config.steps == 6


def test_the_assistant_begins_with_the_base_model_of_its_own_seed(trainings):
    small = replace(TINY, vocab_size=1024)
    tuned = zoo.load(Sft(base=small, examples=32, B=16, seed=3), progress=False)
    assert trainings == [replace(small, seed=3)]
    assert not same(tuned, zoo.load(small, progress=False, seed=3))
    assert tuned.config == small.world


def test_a_reward_model_is_kept_with_its_head_and_judges_the_same_when_read():
    sft = Sft(base=replace(TINY, vocab_size=1024), examples=32)
    recipe = Reward(sft=sft, pairs=64, seed=1)
    trained, read = (zoo.load(recipe, progress=False) for _ in range(2))
    assert same(trained, read) and not read.model.training
    tokens = torch.tensor([response_ids(read.tokenizer, "hi", " Gladly: 2.")])
    rows = tokens, torch.ones_like(tokens).bool()
    assert torch.equal(trained.model(*rows), read.model(*rows))
    trunk = zoo.load(replace(sft, seed=1), progress=False).model
    assert torch.equal(read.model.trunk(tokens), trunk(tokens)), "it was to stay as is"


# --- the command line


def test_the_command_line_lists_what_there_is_and_trains_what_is_missing(
    cache, monkeypatch, capsys
):
    tiny = {"base": TINY, "sft": Sft(base=replace(TINY, vocab_size=1024), examples=32)}
    monkeypatch.setattr(zoo, "RECIPES", tiny)
    assert main(["zoo"]) == 0
    assert capsys.readouterr().out.count("not trained yet") == 2
    assert main(["zoo", "base"]) == 0
    assert capsys.readouterr().out.count("not trained yet") == 1
    assert main(["zoo", "--all"]) == 0
    assert "not trained yet" not in capsys.readouterr().out
    assert len(files(cache)) == 3  # and the base of the assistant, which is another
    assert main(["zoo", "bse"]) == 2
    assert "recipe must be one of" in capsys.readouterr().err
