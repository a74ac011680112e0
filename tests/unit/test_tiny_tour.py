"""The main job on TinyWorld: truth beside measurement, in the table and on the page."""

import importlib.util
import json
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from minillm.data import Tokenizer
from minillm.evaluation.asking import Answer
from minillm.finetuning import respond
from minillm.model import GPT, GPTConfig
from minillm.school import (
    show,
    tiny_align,
    tiny_judge,
    tiny_lora,
    tiny_measure,
    tiny_pictures,
    tiny_reward,
    tiny_sft,
)
from minillm.school.options import TINYWORLD, TourOptions, options_from
from minillm.school.pipeline import Run
from minillm.school.tiny_looks import GROUPS, TinyLook, by_rank
from minillm.school.tiny_report import example, priced
from minillm.school.tinytext import tiny_text
from minillm.school.tour import tour
from minillm.training import MetricsLog, Trainer, TrainingInterrupted, load_model
from minillm.world import World
from minillm.world.questions import Question
from minillm.world.recorder import KINDS

FEW = {"minutes": 0.02, "vocab_size": 800}


@pytest.fixture
def few(monkeypatch):
    """As many instructions and questions as a test has time for."""
    monkeypatch.setattr(tiny_sft, "EXAMPLES", 96)
    monkeypatch.setattr(tiny_sft, "HELD_OUT", 40)
    monkeypatch.setattr(tiny_lora, "EXAMPLES", 96)
    monkeypatch.setattr(tiny_measure, "SKILLS", 12)
    monkeypatch.setattr(tiny_measure, "NOBODY", 3)
    monkeypatch.setattr(tiny_measure, "by_rank", lambda lore: by_rank(lore, 2))
    monkeypatch.setattr("minillm.school.tiny_looks.FEW", 2)
    monkeypatch.setattr(tiny_reward, "PAIRS", 40)
    for name, small in {"MORE": 24, "FROM": 60, "REFUSALS": 8, "JUDGED": 20}.items():
        monkeypatch.setattr(tiny_judge, name, small)
    for name, small in {"HELD_OUT": 12, "PROMPTS": 20, "VERDICTS": 20}.items():
        monkeypatch.setattr(tiny_align, name, small)
    for settings in (tiny_align.PPO, tiny_align.DPO, tiny_align.GRPO):
        monkeypatch.setitem(settings, "steps", 2)
    for settings in (tiny_align.PPO, tiny_align.GRPO):
        monkeypatch.setitem(settings, "max_new_tokens", 4)


@pytest.fixture
def done(few, tmp_path):
    return tour(TourOptions(**FEW), tmp_path / "run")


def test_the_tour_on_tinyworld_states_truth_beside_measurement_for_each_stage(done):
    rows = {(row[0], row[1]): row[2:] for row in done.rows}
    assert {stage for stage, _ in rows} == {
        "world",
        "train",
        "measure",
        "sft",
        "respond",
        "lora",
        "qlora",
        "reward",
        "ppo",
        "dpo",
        "grpo",
    }
    floor = float(rows["world", "floor (nats per token)"][0])
    truth, measured = rows["measure", "loss (nats per token)"]
    assert floor == float(truth) < float(measured)
    for stage, metric in rows:
        if stage in ("measure", "respond", "lora", "qlora"):
            assert rows[stage, metric][0], f"{metric} has no truth beside it"
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 7
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "What the floor is" in page


def test_the_parts_of_the_excess_add_up_in_the_results(done):
    found = done.results["excess"]
    assert sum(found[kind] for kind in KINDS) == pytest.approx(found["total"], 1e-9)


def test_the_models_of_a_tour_load_and_answer(done):
    for folder in (done.folder, *(done.folder / x for x in ("sft", "lora", "qlora"))):
        model = load_model(folder / "checkpoint.safetensors")
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        assert len(respond(model, tokenizer, ["what is 1+1?"], 4)) == 1


def test_a_tour_that_was_stopped_during_fine_tuning_goes_on_there(
    few, tmp_path, monkeypatch
):
    original, pretrained = Trainer.train_step, []

    def step(self):
        name = getattr(self.folder, "name", None)  # adapters have no folder
        if name == "run":
            pretrained.append(self.step)
        elif name == "sft" and self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with pytest.raises(TrainingInterrupted, match="go on"):
            tour(TourOptions(**FEW), tmp_path / "run")
    before = len(pretrained)
    monkeypatch.setattr(Trainer, "train_step", step)
    done = tour(TourOptions(**FEW), tmp_path / "run")
    assert len(pretrained) == before, "pre-training was done twice"
    log = (done.folder / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(len(log)))


def test_options_take_their_defaults_from_the_kind_of_text():
    assert options_from() == TourOptions()
    assert options_from(data=TINYWORLD).size == "tiny"
    real = options_from(data="book.txt", minutes=None, size="large")
    assert (real.minutes, real.size) == (1.75, "large")


def test_looks_ask_the_same_people_of_each_group_in_every_run():
    lore = World().lore
    assert by_rank(lore, 2) == by_rank(lore, 2)
    everybody = by_rank(lore)
    assert sum(map(len, everybody.values())) == 4 * len(lore.people)
    ranks = [question.rank for asked in everybody.values() for question in asked]
    assert ranks == sorted(ranks)


def test_looking_at_a_model_of_tinyworld_draws_no_random_number(tmp_path):
    import torch

    text = tiny_text(documents=1000, test=20, vocab_size=800)
    model = GPT(GPTConfig(800, n_layer=1, n_head=2, n_embd=16, context=128))

    class Finished:
        """As much of a trainer as a look needs."""

        step, config = 1, type("Config", (), {"steps": 1})
        metrics = MetricsLog(None)

    Finished.model = model
    state = torch.get_rng_state()
    look = TinyLook(Run(tmp_path, {}), text, Finished)
    look(Finished)
    assert torch.get_rng_state().equal(state)
    assert set(look.log.records[0]["recall"]) == set(GROUPS)


def test_the_example_of_the_page_has_text_of_every_kind_and_is_whole():
    text = tiny_text(documents=1000, test=200, vocab_size=800)
    parts = priced(example(text))
    assert {kind for _, kind, _ in parts} == set(KINDS)
    assert "".join(part for part, _, _ in parts) == example(text).text
    total = sum(float(nats) for _, _, nats in parts if nats)
    assert total == pytest.approx(example(text).nats, abs=0.005 * len(parts))


def test_the_titles_of_pictures_say_only_what_was_found():
    question = Question("?", "yes", "fact")
    sure = [Answer(question, "yes", 0.9)] * 8
    axes, alt = tiny_pictures.confidence_picture(sure, [Answer(question, "", 0.6)], 0.1)
    assert "60% sure; 10% is honest" in axes.get_title(loc="left")
    assert "it is 60% sure" in alt
    assert show.png(axes).startswith(b"\x89PNG")
    rising = {"often": [0.2, 0.4, 0.9], "rarely": [0.0, 0.6, 0.7]}
    title = tiny_pictures.recall_title([1, 2, 3], rising)
    assert title == "Which facts were learned when"  # the rare ones came first


def test_labels_of_lines_that_end_close_together_are_moved_apart():
    axes = show.figure("t", "x", "y")
    axes.plot([0, 1], [0, 1])
    ends = [(0.5, "a", "red"), (0.5, "b", "blue"), (0.51, "c", "green")]
    show.spread_labels(axes, 1, ends, least=0.1)
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert list(heights) == ["c", "a", "b"]  # equal ends in the order given
    assert all(b - a < -0.0999 for a, b in pairwise(heights.values()))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_labels_of_lines_that_end_at_an_edge_stay_within_the_picture(level):
    axes = show.figure("t", "x", "y")
    axes.set_ylim(0, 1)
    show.spread_labels(axes, 1, [(level, name, "red") for name in "abcd"], least=0.1)
    heights = [text.xy[1] for text in axes.texts]
    top = max(level, 0.3)
    assert heights == pytest.approx([top, top - 0.1, top - 0.2, top - 0.3])


def test_a_vocabulary_so_small_that_documents_outgrow_the_context_is_refused():
    with pytest.raises(ValueError, match=r"T must be at least \d+.*more tokens"):
        tiny_text(documents=300, test=200, vocab_size=300)


def test_the_study_of_the_tour_measures_what_its_table_does(few, monkeypatch):
    path = Path(__file__).parents[2] / "studies" / "03_tour.py"
    spec = importlib.util.spec_from_file_location("study", path)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    known = tiny_text(documents=1000, test=20)
    monkeypatch.setattr(study, "text", lambda: known)
    measured = json.loads(json.dumps(study.run(0, steps=2)))
    assert {"excess", "recall", "confidence", "responses"} <= set(measured)
    assert measured["tokens"] == 2 * 16 * 127
