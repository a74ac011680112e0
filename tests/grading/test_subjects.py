"""Both subjects give the same answers, to all five questions."""

import pytest
import torch

from minillm.school.grading.inprocess import InProcess
from minillm.school.grading.process import ProcessSubject
from minillm.school.grading.subject import AnswerError
from minillm.school.grading.workshop import Limits, Workshop

SOURCE = """
import os
import torch

def twice(x, plus=0):
    return 2 * x + plus

def pair(x):
    return x.sum(), "word"

def cut_off(x):
    return float(x.detach().sum())

def ends(x):
    os._exit(1)

class Gate(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.arange(float(width)))

    def forward(self, x):
        return x * self.scale

    def wrap(self, other):
        return other(torch.ones(3)) + self.scale

def apply(module, x):
    return module(x)
"""


@pytest.fixture(scope="module")
def workshop():
    with Workshop() as shop:
        yield shop


@pytest.fixture(params=["here", "child", "cold child"])
def subject(request, workshop):
    if request.param == "here":
        namespace = {}
        exec(SOURCE, namespace)
        yield InProcess(namespace)
        return
    cold = Workshop(warm=False)
    with cold:
        shop = workshop if request.param == "child" else cold
        asked = ProcessSubject(SOURCE, shop, Limits(seconds=30))
        yield asked
        asked.close()


def test_a_function_is_called(subject):
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert subject.call("twice", x).tolist() == [2.0, 4.0]
    assert subject.call("twice", x, plus=1).tolist() == [3.0, 5.0]
    assert subject.call("twice", 3) == 6
    total, word = subject.call("pair", x)
    assert total.item() == 3.0 and word == "word"


def test_gradients_are_taken_where_the_answer_lives(subject):
    x = torch.tensor([1.0, 2.0])
    (g,) = subject.grad("twice", [x], [0])
    assert g.tolist() == [2.0, 2.0] and not x.requires_grad
    with torch.no_grad():
        assert subject.grad("twice", [x], [0])[0].tolist() == [2.0, 2.0]
    with pytest.raises(AnswerError, match="has no gradient"):
        subject.grad("cut_off", [x], [0])


def test_modules_are_made_called_and_looked_into(subject):
    gate = subject.make("Gate", 3)
    assert subject.state(gate)["scale"].tolist() == [0.0, 1.0, 2.0]
    x = torch.full((3,), 2.0)
    assert subject.method(gate, "forward", x).tolist() == [0.0, 2.0, 4.0]
    assert subject.call("apply", gate, x).tolist() == [0.0, 2.0, 4.0]
    assert subject.method(gate, "wrap", gate).tolist() == [0.0, 2.0, 4.0]
    at_x, at_scale = subject.grad(gate, [x], [0, "scale"])
    assert at_x.tolist() == [0.0, 1.0, 2.0] and at_scale.tolist() == [2.0, 2.0, 2.0]
    linear = subject.make("torch.nn.Linear", 2, 3)
    assert subject.state(linear)["weight"].shape == (3, 2)


def test_what_is_not_there_is_named(subject):
    with pytest.raises(AnswerError, match="has nothing that is called thrice"):
        subject.call("thrice", 1)


def test_after_a_crash_the_next_question_is_answered_but_objects_are_gone(workshop):
    subject = ProcessSubject(SOURCE, workshop)
    gate = subject.make("Gate", 2)
    with pytest.raises(AnswerError, match="ended its process"):
        subject.call("ends", 1)
    assert subject.call("twice", 2) == 4
    with pytest.raises(AnswerError, match="lost an object"):
        subject.state(gate)
    subject.close()


def test_a_child_knows_few_secrets_and_starts_in_an_empty_folder(workshop, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    with Workshop() as shop:
        source = "import os\ndef f():\n    return [sorted(os.environ), os.listdir()]"
        subject = ProcessSubject(source, shop)
        names, files = subject.call("f")
        subject.close()
    assert "SOME_TOKEN" not in names and files == []


def test_source_that_fails_is_refused_once_and_for_all(workshop):
    subject = ProcessSubject("import no_such_module_at_all", workshop)
    for _ in range(2):
        with pytest.raises(
            AnswerError, match="No module named 'no_such_module_at_all'"
        ):
            subject.call("f")
    subject.close()


def test_a_child_that_cannot_be_started_is_no_fault_of_the_answer(
    workshop, monkeypatch
):
    def fails(_):
        raise OSError("no more processes")

    monkeypatch.setattr(workshop, "start", fails)
    with pytest.raises(AnswerError, match="got no process to run in"):
        ProcessSubject(SOURCE, workshop).call("twice", 1)
