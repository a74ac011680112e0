"""A judge with known faults: what asking in both orders cures, and what not."""

import math
from itertools import product

import pytest

from minillm.alignment.judge import FIRST, SECOND, TIE, Judge, label, swap_debiased
from minillm.world.preferences import WEIGHTS, Annotator, true_reward
from minillm.world.questions import Question

QUESTION = Question("Compute 1+1=", "2", "arithmetic")
GOOD, WRONG = " Gladly: 2.", " Gladly: 3."
PADDED = " Gladly: 3, as everybody here has known for a very long time."
RESPONSES = (GOOD, WRONG, PADDED, " You fool: 2.", " 2 !!", "")


def every_pair():
    return [(a, b) for a, b in product(RESPONSES, repeat=2) if a != b]


def test_without_faults_it_is_an_annotator_by_bradley_terry():
    judge, annotator = Judge(temperature=0.7), Annotator(temperature=0.7)
    for a, b in every_pair():
        odds = judge.odds(QUESTION, a, b)
        assert odds.first == pytest.approx(annotator.probability(QUESTION, a, b))
        assert odds.tie == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("swapped", [False, True])
def test_odds_are_a_distribution_whatever_the_faults(swapped):
    for b, length, width in product((-3.0, 0.0, 50.0), (0.0, 2.0), (0.0, 1.0, 1e6)):
        judge = Judge(0.5, b, length, width)
        judge = swap_debiased(judge) if swapped else judge
        for pair in every_pair():
            odds = judge.odds(QUESTION, *pair)
            assert all(0 <= p <= 1 for p in odds) and sum(odds) == pytest.approx(1)


@pytest.mark.parametrize("swapped", [False, True])
def test_verdicts_are_drawn_by_the_odds(swapped):
    drawn, n = dict.fromkeys((FIRST, SECOND, TIE), 0), 4000
    for seed in range(n):
        judge = Judge(1.0, position_bias=0.5, tie_width=0.5, seed=f"{seed}")
        judge = swap_debiased(judge) if swapped else judge
        drawn[judge(QUESTION, GOOD, " Answer: 2.")] += 1
    odds = judge.odds(QUESTION, GOOD, " Answer: 2.")
    for verdict, p in zip((FIRST, SECOND, TIE), odds, strict=True):
        spread = math.sqrt(p * (1 - p) / n)
        assert abs(drawn[verdict] / n - p) < 4 * spread


def test_asked_again_it_says_the_same_and_another_seed_draws_anew():
    judge = Judge(temperature=5.0)
    said = [judge(QUESTION, a, b) for a, b in every_pair()]
    assert said == [judge(QUESTION, a, b) for a, b in every_pair()]
    rivals = [judge(QUESTION, GOOD, f" Gladly: {n}.") for n in range(3, 30)]
    assert {*rivals} == {FIRST, SECOND}, "each pair has a draw of its own"
    other = Judge(temperature=5.0, seed="another")
    assert said != [other(QUESTION, a, b) for a, b in every_pair()]


def test_a_cold_judge_takes_the_better_by_its_own_lights():
    judge = Judge(temperature=1e-3)
    for a, b in every_pair():
        ahead = true_reward(QUESTION, a) - true_reward(QUESTION, b)
        if abs(ahead) > 0.01:
            assert judge(QUESTION, a, b) == (FIRST if ahead > 0 else SECOND)


def test_position_bias_makes_the_verdict_depend_on_the_order():
    judge = Judge(position_bias=2.0)
    here, there = (judge.odds(QUESTION, *p) for p in ((GOOD, WRONG), (WRONG, GOOD)))
    assert here.first > there.second + 0.2
    loving_second = Judge(position_bias=-2.0)
    assert loving_second.odds(QUESTION, GOOD, GOOD).second > 0.8


def test_the_swap_cures_the_position_bias_exactly():
    """Shown either way, the debiased judge has the same odds for each response."""
    for bias in (-5.0, 0.5, 2.0):
        judge = swap_debiased(Judge(position_bias=bias, length_bias=0.1, tie_width=0.3))
        for a, b in every_pair():
            here, there = judge.odds(QUESTION, a, b), judge.odds(QUESTION, b, a)
            assert here.first == pytest.approx(there.second, rel=1e-12)
            assert here.tie == pytest.approx(there.tie, rel=1e-12)


def test_the_swap_keeps_the_direction_of_the_utility_whatever_the_position_bias():
    plain = Judge(position_bias=4.0)
    wrongly = plain.odds(QUESTION, WRONG, GOOD)
    assert wrongly.first > wrongly.second, "the bias outweighs a wrong answer"
    cured = swap_debiased(plain).odds(QUESTION, WRONG, GOOD)
    assert cured.second > cured.first


def test_the_swap_does_not_cure_length_bias_or_taste():
    """The longer wrong response still wins over the right one."""
    long_winded = Judge(length_bias=1.0)
    assert true_reward(QUESTION, GOOD) > true_reward(QUESTION, PADDED) + 2
    for judge in (long_winded, swap_debiased(long_winded)):
        odds = judge.odds(QUESTION, GOOD, PADDED)
        assert odds.second > 0.95
    vain = Judge(taste=dict(WEIGHTS) | {"correctness": 0.0, "politeness": 9.0})
    right, polite = " Answer: 2.", WRONG
    assert true_reward(QUESTION, right) > true_reward(QUESTION, polite)
    for judge in (vain, swap_debiased(vain)):
        odds = judge.odds(QUESTION, right, polite)
        assert odds.second > 0.95


def test_the_swap_pays_with_ties_and_gains_accuracy_on_what_is_left():
    close = (GOOD, " Answer: 2.")  # half a point apart
    judge = Judge(position_bias=3.0)
    before, after = (j.odds(QUESTION, *close) for j in (judge, swap_debiased(judge)))
    assert before.tie == pytest.approx(0, abs=1e-12) and after.tie > 0.8
    for pair in (close, close[::-1]):
        odds = swap_debiased(judge).odds(QUESTION, *pair)
        better = odds.first if pair == close else odds.second
        assert better / (1 - odds.tie) > 0.7  # sigmoid(0.5) = 0.62 without any bias


def test_wider_ties_take_from_close_pairs_first():
    for width, (close, far) in {0.0: (0, 0), 1.0: (0.4, 0.1), 9.0: (0.9, 0.9)}.items():
        judge = Judge(tie_width=width)
        assert judge.odds(QUESTION, GOOD, " Answer: 2.").tie >= close
        if width == 1.0:
            assert judge.odds(QUESTION, GOOD, " You fool: 3 !!").tie <= far


def test_labels_keep_the_order_of_verdicts_and_leave_ties_out():
    """H26: a tie counted for the second is a preference that nobody had."""
    judge = Judge(temperature=1e-3)
    pairs = [(QUESTION, GOOD, WRONG), (QUESTION, WRONG, GOOD), (QUESTION, GOOD, GOOD)]
    found = label(judge, pairs)
    assert [(p.chosen, p.rejected) for p in found] == [(GOOD, WRONG)] * 2
    assert label(Judge(tie_width=1e6), pairs) == []


def test_a_random_order_spreads_the_position_bias_evenly_over_both_models():
    """Shown first always, the same model would win by its place."""
    judge, n = Judge(temperature=1e-3, position_bias=100.0), 400
    pairs = [
        (Question(f"{i}", "2", "arithmetic"), GOOD, " Gladly: 2 .") for i in range(n)
    ]
    wins = sum(p.chosen == GOOD for p in label(judge, pairs))
    assert abs(wins / n - 0.5) < 4 * 0.5 / math.sqrt(n)
    in_order = sum(judge(*pair) == FIRST for pair in pairs)
    assert in_order == n


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"tie_width": -0.1}, "tie_width must be at least 0"),
        ({"tie_width": math.nan}, "tie_width must be at least 0"),
        ({"position_bias": math.inf}, "position_bias, length_bias must be finite"),
        ({"taste": {"politeness": 1.0}}, "taste must be weights of"),
    ],
)
def test_impossible_judges_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Judge(**settings)
