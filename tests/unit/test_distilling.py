"""Distillation as training: whose text, which loss, and where it ends."""

import math
from functools import partial

import pytest
import torch

from minillm.compression import distilling
from minillm.compression.distillation import gkd_loss, kd_loss, kl
from minillm.compression.distilling import distil, hard_loss, soft_loss, write
from minillm.model import GPT, GPTConfig
from minillm.training import TrainConfig, minimise

V, START, LONG = 5, [[0]] * 32, 3  # all texts: 0 and three tokens of 5
CONFIG = TrainConfig(80, lr=1e-2, matrix_lr=2e-2, warmup=5)


def model(seed, **shape):
    torch.manual_seed(seed)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 8}
    return GPT(GPTConfig(V, **(sizes | shape)))


@pytest.fixture(scope="module")
def teacher():
    net = model(0, n_embd=32)
    for parameter in net.parameters():  # somebody with opinions
        parameter.data *= 4
    return net


def everything():
    """Each of the 125 texts."""
    three = torch.cartesian_prod(*[torch.arange(V)] * LONG)
    return torch.cat([torch.zeros(len(three), 1).long(), three], dim=1)


@torch.no_grad()
def distance(teacher, student):
    """KL(teacher || student) of whole texts, exactly: a sum over all there are."""
    tokens = everything()
    logprobs = [
        net(tokens)[:, :-1]
        .log_softmax(-1)
        .gather(2, tokens[:, 1:, None])
        .sum((1, 2))
        .double()
        for net in (teacher, student)
    ]
    return kl(*logprobs).item()


def written(teacher, n=8):
    dice = torch.Generator().manual_seed(1)
    rows = [write(teacher, START, LONG, generator=dice) for _ in range(n)]
    return lambda step: rows[step % n]


WAYS = {
    "hard": lambda s, t, texts: minimise(
        s, lambda step: hard_loss(s, texts(step)), CONFIG
    ),
    "soft": lambda s, t, texts: distil(
        s, t, texts, CONFIG, partial(kd_loss, temperature=2.0)
    ),
    "half of it on-policy": lambda s, t, texts: distil(
        s, t, texts, CONFIG, own=0.5, max_new_tokens=LONG
    ),
    "on-policy, reverse": lambda s, t, texts: distil(
        s, t, texts, CONFIG, partial(gkd_loss, beta=1.0), 1.0, LONG
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_student_comes_to_the_teacher(way, teacher):
    student = model(1)
    before = distance(teacher, student)
    assert before > 0.3
    WAYS[way](student, teacher, written(teacher))
    # Hard distillation hears 256 texts, soft distillation the teacher itself.
    part = 0.25 if way == "hard" else 0.05
    assert distance(teacher, student) < part * before


def test_soft_labels_tell_more_than_the_same_texts_alone(teacher):
    few, ends = written(teacher, 1), {}
    for way in ("hard", "soft"):
        student = model(1)
        WAYS[way](student, teacher, few)
        ends[way] = distance(teacher, student)
    assert ends["soft"] < ends["hard"] / 3


def test_a_student_who_is_the_teacher_stays(teacher):
    student = model(0, n_embd=32)
    student.load_state_dict(teacher.state_dict())
    for divergence in (kd_loss, gkd_loss):
        loss = soft_loss(student, teacher, written(teacher)(0), divergence)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert all(p.grad.abs().max() < 1e-5 for p in student.parameters())


@pytest.mark.parametrize(
    ("own", "least", "most"), [(0, 0, 0), (0.3, 8, 34), (1, 60, 60)]
)
def test_lambda_is_the_share_of_steps_at_which_the_student_writes(
    own, least, most, teacher, monkeypatch
):
    student, texts, counted = model(1), written(teacher, 1), []

    def counting(net, *given):
        counted.append(net is student)
        return write(net, *given)

    monkeypatch.setattr(distilling, "write", counting)
    distil(student, teacher, texts, TrainConfig(60), own=own, max_new_tokens=1)
    assert all(counted)
    assert least <= len(counted) <= most


def test_padding_on_both_sides_changes_nothing(teacher):
    # prompts of unequal lengths, texts that stop early
    dice = torch.Generator().manual_seed(3)
    text = write(teacher, [[1, 2, 3], [4], [2, 2]], 4, stop=0, generator=dice)
    assert not text.real.all()
    student, total, n = model(1), 0.0, 0
    for row, real, said in zip(text.tokens, text.real, text.said, strict=True):
        tokens = row[real][None]
        some = said[real][None]
        alone = distilling.Text([], tokens, torch.ones_like(some), some)
        count = int(some.sum())
        total += count * soft_loss(student, teacher, alone).item()
        n += count
    whole = soft_loss(student, teacher, text).item()
    assert whole == pytest.approx(total / n, rel=1e-4)


def test_the_prompt_is_never_learned(teacher):
    text = write(teacher, [[1, 2, 3], [4]], 3)
    assert text.said.sum() == 6
    unsaid = zip(text.tokens, text.real & ~text.said, strict=True)
    assert [row[keep].tolist() for row, keep in unsaid] == [[1, 2, 3], [4]]


def test_of_a_student_that_is_too_small_forward_covers_and_reverse_takes_one_mode():
    # Twenty-one tokens in a row; the teacher says 4 or 16 or near them. The student is
    # one bump, with a place and a width.
    x = torch.arange(21.0).double()
    bump = lambda at: torch.exp(-((x - at) ** 2) / 2)  # noqa: E731
    teacher = (0.6 * bump(4) + 0.4 * bump(16) + 1e-4).log()

    def best(beta):
        bumps = [
            (-((x - place) ** 2) / (2 * width**2)).log_softmax(-1)
            for place in torch.linspace(0, 20, 41).tolist()
            for width in (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 16.0)
        ]
        losses = [
            gkd_loss(z[None, None], teacher[None, None], beta=beta) for z in bumps
        ]
        return bumps[int(torch.stack(losses).argmin())].exp()

    forward, reverse = best(0.0), best(1.0)
    T = teacher.softmax(-1)
    between = slice(8, 13)  # what the teacher never says
    assert T[between].sum() < 1e-3
    assert forward[between].sum() > 0.2
    assert reverse[between].sum() < 0.01
    # forward has the teacher's mean; reverse gives one of its modes nearly everything
    assert (forward @ x).item() == pytest.approx((T @ x).item(), abs=0.5)
    assert max(reverse[:9].sum(), reverse[12:].sum()) > 0.98
    assert min(forward[:8].sum(), forward[13:].sum()) > 0.1


def test_what_makes_no_sense_is_refused(teacher):
    texts = written(teacher, 1)
    for own in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="own"):
            distil(model(1), teacher, texts, CONFIG, own=own)
    with pytest.raises(ValueError, match="another model"):
        distil(teacher, teacher, texts, CONFIG)
    with pytest.raises(ValueError, match="context"):
        distil(model(1), teacher, texts, CONFIG, own=1.0, max_new_tokens=9)
    torch.manual_seed(0)
    other = GPT(GPTConfig(V + 1, n_layer=1, n_head=2, n_embd=16, context=8))
    with pytest.raises(ValueError, match="one vocabulary"):
        distil(other, teacher, texts, CONFIG)
    with pytest.raises(ValueError, match="prompts"):
        write(teacher, [], 3)
