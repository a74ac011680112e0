"""The tour's alignment: measured against the truth, from one start, and resumable."""

import copy
import signal
from random import Random

import pytest
import torch

from minillm.alignment.held_out import (
    Outcome,
    held_out_verdicts,
    mediocre,
    side_by_side,
)
from minillm.alignment.loop import repeat
from minillm.alignment.own_responses import frozen_copy
from minillm.alignment.reward_judging import true_gain
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import opening_ids
from minillm.model import GPT, GPTConfig
from minillm.school import tiny_align, tiny_pictures
from minillm.school.pipeline import Run
from minillm.school.tiny_align import Start, align, trained
from minillm.school.tinytext import tiny_text
from minillm.training import TrainingInterrupted
from minillm.world import World
from minillm.world.instructions import instructions, is_held_out
from minillm.world.preferences import Annotator


@pytest.fixture(scope="module")
def text():
    return tiny_text(documents=1000, test=20, vocab_size=800)


@pytest.fixture
def few(monkeypatch):
    for name, small in {"HELD_OUT": 8, "PROMPTS": 10, "VERDICTS": 20}.items():
        monkeypatch.setattr(tiny_align, name, small)
    monkeypatch.setattr(tiny_align, "LONGEST", 4)
    for settings in (tiny_align.PPO, tiny_align.DPO, tiny_align.GRPO):
        monkeypatch.setitem(settings, "steps", 2)
    for settings in (tiny_align.PPO, tiny_align.GRPO):
        monkeypatch.setitem(settings, "max_new_tokens", 4)


@pytest.fixture
def start(text) -> Start:
    torch.manual_seed(0)
    shape = (text.tokenizer.vocab_size, 1, 2)
    assistant = GPT(GPTConfig(*shape, n_embd=16, context=128))
    judge = RewardModel(frozen_copy(assistant), opening_ids(text.tokenizer))
    return Start(text, frozen_copy(assistant), judge.eval(), seed=0)


# --- verdicts that were held out


def test_held_out_verdicts_are_on_what_no_training_held():
    lore = World().lore
    verdicts = list(held_out_verdicts(lore, 60, Annotator()))
    assert len(verdicts) > 50
    assert all(is_held_out(lore, asked.question) for asked, _ in verdicts)
    assert all(p.chosen != p.rejected for _, p in verdicts)
    assert (
        verdicts == list(held_out_verdicts(lore, 60, Annotator()))
        and verdicts[0] != verdicts[1]
    )
    other = list(held_out_verdicts(lore, 60, Annotator(), stream="another"))
    assert verdicts[0][0].prompt != other[0][0].prompt


def test_an_annotator_who_is_hardly_ever_wrong_chooses_the_better_response():
    sure = Annotator(temperature=1e-3)
    verdicts = held_out_verdicts(World().lore, 60, sure)
    assert min(true_gain(preference) for _, preference in verdicts) > -0.01


def test_a_mediocre_response_is_never_a_good_one():
    for asked in instructions(World().lore, 40):
        dice = Random(asked.prompt).random
        assert mediocre(asked.question, dice) != asked.good


# --- what is measured


def test_of_the_assistant_itself_the_kl_is_zero_and_nothing_is_changed(few, start):
    state = torch.get_rng_state()
    found = start.look(copy.deepcopy(start.assistant))
    assert found.kl == pytest.approx(0, abs=1e-5)
    assert len(found.said) == 8
    assert torch.get_rng_state().equal(state)
    assert found == start.look(start.assistant)


def test_each_way_begins_with_the_assistant_and_leaves_it_alone(few, start, tmp_path):
    run = Run(tmp_path, {"seed": 0}, results={"reward model": {"ceiling": 0.8}})
    before = {name: w.clone() for name, w in start.assistant.state_dict().items()}
    parts = (start.text, start.assistant, start.judge)
    found = align(run, *parts, resumed=False)
    assert list(found) == ["sft", "ppo", "dpo", "grpo"]
    after = start.assistant.state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    assert set(run.results["alignment"]) == set(found)
    assert found["ppo"].kl != 0 and found["dpo"].kl != 0
    stages = [row[0] for row in run.rows]
    assert list(dict.fromkeys(stages)) == ["ppo", "dpo", "grpo"]


# --- stopped, and gone on with


def test_what_was_trained_is_read_again_when_the_run_goes_on(start, tmp_path):
    run, times = Run(tmp_path, {"seed": 0}), []

    def way(policy, start):
        times.append(1)
        with torch.no_grad():
            policy.embed_tokens.weight += 1

    first = trained(run, "ppo", way, start, resumed=False)
    again = trained(run, "ppo", way, start, resumed=True)
    assert len(times) == 1
    assert first.embed_tokens.weight.equal(again.embed_tokens.weight)
    trained(run, "ppo", way, start, resumed=False)
    assert len(times) == 2, "a run that does not go on trains"
    with torch.no_grad():
        start.assistant.embed_tokens.weight += 1
    trained(run, "ppo", way, start, resumed=True)
    assert len(times) == 3, "another assistant makes what lies there old"


def test_who_stops_it_is_told_how_to_go_on(start, tmp_path):
    run = Run(tmp_path, {"seed": 0})

    def step():
        signal.raise_signal(signal.SIGINT)
        return {"reward": 0.0}

    def way(policy, start):
        repeat(step, 3, progress=False)

    told = r"grpo stopped after step 1 of 3. Run the same command again to go on"
    with pytest.raises(TrainingInterrupted, match=told):
        trained(run, "grpo", way, start, resumed=False)
    assert not (tmp_path / "grpo").exists()


# --- the page


def aligned(text: str, proxy: float, kl: float) -> Outcome:
    asked = next(iter(instructions(World().lore, 1)))
    return Outcome([asked], [text or asked.good], proxy, kl)


def test_the_page_shows_what_each_said_where_they_differ():
    same = {"sft": aligned("", 1.0, 0.0), "ppo": aligned("", 2.0, 1.0)}
    assert side_by_side(same) == []
    other = same | {"ppo": aligned(" no.", 2.0, 1.0)}
    names = [caption for _, _, caption in side_by_side(other)]
    assert len(names) == 2
    assert names[0].startswith("SFT: 4.") and names[1].startswith("PPO: ")


def test_the_picture_of_alignment_says_who_gained():
    worse = aligned(" no.", 2.0, 1.0)
    found = dict.fromkeys(("sft", "ppo", "dpo", "grpo"), worse)
    axes, alt = tiny_pictures.alignment_picture(found | {"dpo": aligned("", 1.0, 0.5)})
    assert "DPO gains most" in axes.get_title(loc="left")
    assert "KL 0.50 nats" in alt
    axes, _ = tiny_pictures.alignment_picture(found | {"sft": aligned("", 1.0, 0.0)})
    assert "None became better than SFT" in axes.get_title(loc="left")
