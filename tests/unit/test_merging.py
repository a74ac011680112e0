"""Several models into one: soups, task arithmetic, TIES, DARE, SLERP."""

import math

import pytest
import torch

from minillm.compression.merging import slerp, soup, task_arithmetic, task_vector
from minillm.compression.thinning import dare, ties, trim


def state(seed, size=1.0):
    dice = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return size * torch.randn(*shape, generator=dice, dtype=torch.float64)

    return {"a": draw(6, 5), "b": draw(4)}


BASE = state(0)
TASKS = [{n: BASE[n] + t for n, t in state(s, 0.1).items()} for s in (1, 2, 3)]


def close(one, other, **settings):
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], **settings)


def test_a_soup_of_one_or_of_equals_is_that_model():
    close(soup([TASKS[0]]), TASKS[0])
    close(soup([TASKS[0]] * 3), TASKS[0])


def test_a_soup_is_the_weighted_mean():
    expected = {n: (3 * TASKS[0][n] + TASKS[1][n]) / 4 for n in BASE}
    close(soup(TASKS[:2], [3, 1]), expected)


def test_a_soup_is_task_arithmetic_with_equal_parts():
    close(soup(TASKS), task_arithmetic(BASE, TASKS, [1 / 3] * 3))


def test_one_task_added_is_its_model_and_taken_away_the_base():
    close(task_arithmetic(BASE, [TASKS[0]]), TASKS[0])
    both = task_arithmetic(BASE, [TASKS[0], TASKS[0]], [1.0, -1.0])
    close(both, BASE)


def test_ties_of_one_whole_task_is_that_task():
    close(ties(BASE, [TASKS[0]], density=1.0), TASKS[0])


def test_ties_elects_the_sign_of_the_sum_and_averages_those_that_agree():
    base = {"w": torch.zeros(4)}
    tasks = [
        {"w": torch.tensor(t)}
        for t in ([5.0, 1.0, 2.0, 1.0], [-1.0, 2.0, 0.0, -1.0], [-1.0, 3.0, 4.0, 0.0])
    ]
    # 5 outvotes -1 and -1; all agree; a zero is not counted; a tie elects nobody
    assert ties(base, tasks, 1.0)["w"].tolist() == [5.0, 2.0, 3.0, 0.0]


def test_the_majority_of_signs_is_another_rule():
    values = torch.tensor([5.0, -1.0, -1.0])
    majority = values.sign().sum().sign()
    assert majority == -1
    tasks = [{"w": v[None]} for v in values]
    assert ties({"w": torch.zeros(1)}, tasks, 1.0)["w"] == 5


def test_weights_of_ties_vote_and_divide():
    tasks = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([-3.0])}]
    zero = {"w": torch.zeros(1)}
    assert ties(zero, tasks, 1.0)["w"] == -3
    assert ties(zero, tasks, 1.0, weights=[2.0, 1.0])["w"] == 2
    agree = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([5.0])}]
    assert ties(zero, agree, 1.0, weights=[2.0, 1.0])["w"] == 3


def test_ties_scales_what_was_merged():
    zero, task = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
    assert ties(zero, [task], 1.0, scale=0.5)["w"].tolist() == [0.5, 1.0]


def test_trimming_keeps_the_largest_of_the_whole_model():
    vector = task_vector(BASE, TASKS[0])
    kept = trim(vector, 0.25)
    sizes = torch.cat([t.abs().flatten() for t in vector.values()])
    left = torch.cat([t.flatten() for t in kept.values()])
    assert (left != 0).sum() == round(0.25 * len(sizes))
    assert left.abs()[left != 0].min() >= sizes.sort().values[-round(0.25 * 34)]


def test_dare_is_right_in_the_mean_and_keeps_so_many():
    draws = [dare(BASE, [TASKS[0]], 0.3, seed=s) for s in range(2000)]
    mean = {n: torch.stack([d[n] for d in draws]).mean(0) for n in BASE}
    # the deviation of a mean over 2,000 draws of tau m / p
    for name in BASE:
        tau = (TASKS[0][name] - BASE[name]).abs()
        error = (mean[name] - TASKS[0][name]).abs()
        assert (error < 5 * tau * math.sqrt(0.7 / 0.3 / 2000) + 1e-12).all()
    moved = torch.cat([(d["a"] != BASE["a"]).flatten().double() for d in draws])
    assert moved.mean().item() == pytest.approx(0.3, abs=0.01)


def test_dare_without_dropping_is_task_arithmetic():
    close(dare(BASE, TASKS, density=1.0), task_arithmetic(BASE, TASKS))


def test_dropping_without_scaling_up_would_shrink_the_task():
    merged = dare(BASE, [TASKS[0]], 0.5, seed=1)
    kept = merged["a"] != BASE["a"]
    tau, full = merged["a"] - BASE["a"], TASKS[0]["a"] - BASE["a"]
    torch.testing.assert_close(tau[kept], 2 * full[kept])


def test_slerp_ends_where_it_should_and_keeps_the_length():
    a, b = state(1), state(2)
    unit = [{n: t / t.norm() for n, t in s.items()} for s in (a, b)]
    close(slerp(a, b, 0.0), a)
    close(slerp(a, b, 1.0), b)
    for t in (0.2, 0.5, 0.9):
        for tensor in slerp(*unit, t).values():
            assert tensor.norm().item() == pytest.approx(1)
    assert (soup(unit)["a"]).norm() < 0.9  # the chord cuts through


def test_slerp_halves_the_angle():
    a, b = ({"w": torch.tensor(x).double()} for x in ([1.0, 0.0], [0.0, 1.0]))
    third = slerp(a, b, 1 / 3)["w"]
    assert math.degrees(math.atan2(third[1], third[0])) == pytest.approx(30)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_slerp_of_parallel_opposite_or_zero_weights_is_a_line(factor):
    a = state(1)
    b = {n: factor * t for n, t in a.items()}
    expected = {n: 0.75 * a[n] + 0.25 * b[n] for n in a}
    close(slerp(a, b, 0.25), expected)


@pytest.mark.parametrize("merge", [task_arithmetic, ties, dare])
def test_other_shapes_names_and_numbers_are_refused(merge):
    other = {"a": torch.zeros(5, 6).double(), "b": BASE["b"]}
    for models in ([other], [{"a": BASE["a"]}]):
        with pytest.raises(ValueError, match="one base"):
            merge(BASE, models)
    with pytest.raises(ValueError, match="one for each of 3"):
        merge(BASE, TASKS, weights=[1.0])
    with pytest.raises(ValueError, match="one for each of 0"):
        merge(BASE, [])


def test_soups_of_nothing_and_of_weights_that_cancel_are_refused():
    with pytest.raises(ValueError, match="one for each of 0"):
        soup([])
    with pytest.raises(ValueError, match="sum to 0"):
        soup(TASKS[:2], [1.0, -1.0])


@pytest.mark.parametrize("density", [0.0, 1.1, math.nan])
def test_densities_that_keep_nothing_or_more_than_all_are_refused(density):
    for merge in (ties, dare):
        with pytest.raises(ValueError, match="density"):
            merge(BASE, TASKS, density=density)


def test_nothing_that_was_given_is_changed():
    before = [{n: t.clone() for n, t in s.items()} for s in (BASE, *TASKS)]
    soup(TASKS), task_arithmetic(BASE, TASKS), ties(BASE, TASKS), dare(BASE, TASKS)
    slerp(BASE, TASKS[0], 0.3)
    for now, then in zip((BASE, *TASKS), before, strict=True):
        close(now, then, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_merged_that_is_not_finite(bad):
    fine, broken = {"w": torch.ones(3)}, {"w": torch.tensor([1.0, bad, 2.0])}
    merges = [
        lambda: soup([fine, broken]),
        lambda: slerp(fine, broken, 0.5),
        lambda: task_arithmetic(fine, [broken]),
        lambda: ties(fine, [broken], 0.5),
        lambda: dare(fine, [broken], 0.5),
    ]
    for merge in merges:
        with pytest.raises(ValueError, match=r"model 1.*'w'"):
            merge()
    with pytest.raises(ValueError, match="weights"):
        soup([fine, fine], [1.0, bad])
    with pytest.raises(ValueError, match="t must be"):
        slerp(fine, fine, bad)
