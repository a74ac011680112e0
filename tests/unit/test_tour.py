"""The main job, end to end and small: it runs, tells the truth, stops and goes on."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from minillm.__main__ import main
from minillm.data import Tokenizer
from minillm.school.looks import Look, first_words
from minillm.school.options import TourOptions, model_config
from minillm.school.pipeline import Run, open_run
from minillm.school.text_tour import prepare
from minillm.school.tour import tour
from minillm.training import TrainConfig, Trainer, TrainingInterrupted, load_model

SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "The dog ran over the hill and barked at the cat.",
    "A bird sang in the tree and the dog looked up.",
]


@pytest.fixture
def corpus(tmp_path):
    """Thirty little documents, all different, with structure to learn."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        lines = [SENTENCES[(i + k * (i + 1)) % 3] for k in range(40)]
        text = f"Story {i}\n\n" + "\n".join(lines)
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def options(corpus, **more) -> TourOptions:
    small = {"minutes": 0.03, "size": "tiny", "vocab_size": 300, "context": 32}
    return TourOptions(str(corpus), **(small | more))


@pytest.fixture
def done(corpus, tmp_path):
    folder = tmp_path / "run"
    return tour(options(corpus), folder), folder


def test_the_tour_leaves_a_table_a_report_and_a_model_that_loads(done, capsys):
    run, folder = done
    stages = {row[0] for row in run.rows}
    assert stages == {"read", "tokenize", "train", "evaluate"}
    assert json.loads((folder / "run.json").read_text())["finished"] is True
    model = load_model(folder / "checkpoint.safetensors")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert not list(folder.glob(".*tmp"))


def test_the_report_is_one_file_that_loads_nothing(done):
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page)) == 4


def test_the_table_says_what_the_logs_say(done):
    run, folder = done
    records = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    measured = {row[1]: row[3] for row in run.rows}
    assert measured["tokens seen"] == f"{sum(r['tokens'] for r in records):,}"
    looks = [json.loads(x) for x in (folder / "looks.jsonl").read_text().splitlines()]
    assert looks[-1]["step"] == len(records)
    assert looks[-1]["tokens"] == sum(r["tokens"] for r in records)


def test_the_summary_praises_the_model_only_where_it_is_better():
    from minillm.model import GPT, GPTConfig
    from minillm.school.pictures import bits_picture
    from minillm.school.text_report import summary
    from minillm.training import MetricsLog

    log = MetricsLog(None)
    log.append({"step": 0, "tokens": 10, "seconds": 60.0})
    model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16))
    worst = {"gzip": 2.0, "5-gram": 1.5, "minillm": 3.0}
    text = summary("a book", model, log, worst)
    assert "better than gzip" not in text
    assert "Still better than the model: gzip and 5-gram" in text
    assert "5-gram still predicts" in bits_picture(worst)[0].get_title(loc="left")
    best = {"gzip": 2.0, "5-gram": 1.5, "minillm": 1.0}
    assert "That is better than gzip and 5-gram" in summary("a book", model, log, best)
    assert "better than all" in bits_picture(best)[0].get_title(loc="left")


def test_looking_at_the_model_does_not_change_its_training(corpus, tmp_path):
    chosen = options(corpus)
    text = prepare(Run(tmp_path / "a", {}), chosen)

    def train(watch: bool):
        from minillm.data.batches import Windows
        from minillm.model import GPT

        torch.manual_seed(0)
        model = GPT(model_config(chosen, text.tokenizer))
        windows = Windows(text.train_stream, 32, 4, 0)
        trainer = Trainer(model, windows, TrainConfig(steps=12), progress=False)
        if watch:
            run = Run(tmp_path / "b", {"seed": 0, "prompt": None})
            trainer.on_step = Look(run, text, trainer)
        trainer.fit()
        return model.state_dict(), torch.get_rng_state()

    (plain, state), (watched, watched_state) = train(False), train(True)
    assert all(plain[name].equal(watched[name]) for name in plain)
    assert state.equal(watched_state)


def interrupt_after(steps: int, monkeypatch) -> None:
    """Press Ctrl-C while the trainer does the given step."""
    import signal

    original = Trainer.train_step

    def step(self):
        if self.step == steps and not self.folder.name.startswith("trial"):
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", step)


def test_an_interrupted_tour_goes_on_with_the_same_command(
    corpus, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    monkeypatch.setattr("minillm.school.pretraining.UNKNOWN", 30)
    monkeypatch.setattr(
        "minillm.school.pretraining.Pace", lambda *_: lambda trainer: None
    )
    with monkeypatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(TrainingInterrupted, match=r"after step 8 of 30.*go on"):
            tour(options(corpus), folder)
    assert json.loads((folder / "run.json").read_text())["finished"] is False
    tour(options(corpus), folder)
    resumed = (folder / "metrics.jsonl").read_text().splitlines()
    whole = tmp_path / "whole"
    tour(options(corpus), whole)
    straight = (whole / "metrics.jsonl").read_text().splitlines()
    losses = [[json.loads(x)["loss"] for x in lines] for lines in (resumed, straight)]
    assert len(losses[0]) == 30
    assert losses[0] == losses[1]


def test_other_options_do_not_overwrite_an_unfinished_run(corpus, tmp_path):
    folder = tmp_path / "run"
    Run(folder, {"data": "a", "minutes": 1.0}).save(finished=False)
    with pytest.raises(ValueError, match=r"unfinished run.*--fresh.*--out"):
        open_run(folder, options(corpus))
    _, resumed = open_run(folder, options(corpus), fresh=True)
    assert not resumed


def test_a_damaged_run_file_is_no_run(tmp_path, corpus):
    (tmp_path / "run.json").write_text('{"settings": ')
    _, resumed = open_run(tmp_path, options(corpus))
    assert not resumed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tour", "--data", "no/such/file.txt"], "no/such/file.txt"),
        (["tour", "--minutes", "-1"], "minutes must be positive"),
        (["tour", "--size", "huge"], "size must be one of"),
        (["generate", "no-run", "Hello"], "no-run"),
        (["export", "no-run", "out"], "no-run"),
        (["train", "--steps", "0", "--out", "x"], "steps must be an int of at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, said, capsys, tmp_path):
    if arguments[0] == "tour":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error.replace("\\", "/")
    assert "Traceback" not in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_trained_run_writes_and_exports_from_the_command_line(done, tmp_path, capsys):
    folder = str(done[1])
    assert main(["generate", folder, "The cat", "--tokens", "8"]) == 0
    assert main(["export", folder, str(tmp_path / "hf")]) == 0
    files = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_threads_spin_only_for_a_moment_and_torch_hears_of_it_in_time():
    # OpenMP reads the setting once, when torch brings it in.
    code = (
        "import os, sys; from minillm.__main__ import main; "
        "assert 'torch' not in sys.modules, 'the command line imports torch too early';"
        "main(['check', 'no-such-file.py']); print(os.environ['GOMP_SPINCOUNT'])"
    )
    kept = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for chosen, expected in [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")]:
        command, env = [sys.executable, "-c", code], kept | chosen
        made = subprocess.run(command, env=env, capture_output=True, text=True)
        assert made.stdout.split() == [expected], made.stderr


def test_generate_repeats_itself_for_a_seed(done, capsys):
    said = []
    wild = ["--tokens", "20", "--temperature", "4", "--top-p", "1"]
    for seed in ("1", "1", "2"):
        main(["generate", str(done[1]), "The cat", "--seed", seed, *wild])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert said[0].startswith("The cat")


def test_a_prompt_longer_than_the_context_is_refused(done, capsys):
    assert main(["generate", str(done[1]), "cat " * 100, "--tokens", "5"]) == 2
    assert "context" in capsys.readouterr().err


def test_train_runs_alone_and_goes_on(corpus, tmp_path, capsys):
    command = ["train", "--data", str(corpus), "--out", str(tmp_path / "run")]
    command += ["--size", "tiny", "--vocab-size", "300", "--context", "32", "--steps"]
    assert main([*command, "6"]) == 0
    assert "held-out loss" in capsys.readouterr().out
    assert main([*command, "7"]) == 2  # another number of steps is another schedule
    assert "steps" in capsys.readouterr().err


@pytest.mark.slow
def test_train_gives_the_same_losses_under_torchrun(corpus, tmp_path):
    common = ["-m", "minillm", "train", "--data", str(corpus), "--steps", "5"]
    common += ["--size", "tiny", "--vocab-size", "300", "--context", "32", "--out"]
    alone, two = tmp_path / "alone", tmp_path / "two"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for prefix, out in ([], alone), (torchrun, two):
        command = [sys.executable, *prefix, *common, str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    losses = [
        [
            json.loads(x)["loss"]
            for x in (out / "metrics.jsonl").read_text().splitlines()
        ]
        for out in (alone, two)
    ]
    # float32 sums in another order; five steps multiply the difference a little
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=0)


def test_first_words_prefers_prose():
    documents = [
        "***** ---- 1 2 3 4 5 6",
        "def f(x):\n    This line reads like prose here",
    ]
    assert first_words(documents, n=4) == "This line reads like"
    assert first_words(["one two"], n=4) == "one two"
