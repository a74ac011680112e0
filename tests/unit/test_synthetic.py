"""Synthetic data: what is drawn, what is kept, and what a student would learn of it."""

import math
from collections import Counter
from itertools import combinations, product

import pytest
import torch

from minillm.compression import expected_pass, pass_at_k, sample_responses, sift
from minillm.data.tokenizer import Tokenizer
from minillm.model import GPT, GREEDY, GPTConfig
from minillm.world.questions import Question, verify

TEACHER = {"4": 0.6, "5": 0.25, "22": 0.1, "four": 0.05}  # responses to 2+2=


def is_right(_, text):
    return text == "4"


def anything(_, __):
    return True


def error_rate(judge, n, most):
    """Expected share of wrong pairs in all that is kept, over every way to draw.

    The ratio of means: what a student reads that is taught by very many prompts.
    """
    wrong = kept = 0.0
    for said in product(TEACHER, repeat=n):
        weight = math.prod(TEACHER[text] for text in said)
        pairs = sift(["2+2="], [said], judge, most).pairs
        kept += weight * len(pairs)
        wrong += weight * sum(text != "4" for _, text in pairs)
    return wrong / kept


@pytest.mark.parametrize("n", [1, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one(n):
    for c in range(n + 1):
        draws = [i < c for i in range(n)]
        for k in range(1, n + 1):
            shares = [any(some) for some in combinations(draws, k)]
            expected = sum(shares) / len(shares)
            assert pass_at_k(n, c, k) == pytest.approx(expected, rel=1e-12)


def test_pass_at_k_stays_exact_for_many_draws():
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.3, 1.0])
def test_pass_at_k_is_unbiased_and_the_plain_estimate_is_too_low(p):
    n = 7
    odds = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in range(1, n + 1):
        ours = sum(o * pass_at_k(n, c, k) for c, o in enumerate(odds))
        plain = sum(o * expected_pass(c / n, k) for c, o in enumerate(odds))
        assert ours == pytest.approx(expected_pass(p, k), rel=1e-9, abs=1e-15)
        assert plain < ours or k == 1 or p in (0, 1)


def test_the_expected_yield_is_that_of_every_way_to_draw():
    for k in (1, 2, 5):
        some = 0.0
        for said in product(TEACHER, repeat=k):
            weight = math.prod(TEACHER[text] for text in said)
            some += weight * len(sift(["2+2="], [said], is_right, most=1).pairs)
        assert some == pytest.approx(expected_pass(0.6, k), rel=1e-12)
    assert expected_pass(1e-18, 10) == pytest.approx(1e-17, rel=1e-12, abs=0)


def test_without_verification_the_student_learns_the_errors_of_the_teacher():
    assert error_rate(anything, n=1, most=1) == pytest.approx(0.4, rel=1e-12)
    assert error_rate(anything, n=4, most=1) == pytest.approx(0.4, rel=1e-12)


def test_with_verification_no_error_is_left():
    for n, most in ((1, 1), (4, 1), (4, 4)):
        assert error_rate(is_right, n, most) == 0


def test_dropping_copies_without_verification_makes_errors_more_frequent():
    rates = [error_rate(anything, n, most=n) for n in (1, 2, 4)]
    assert rates == sorted(rates)
    assert rates[-1] > 0.5


def test_a_verifier_that_lets_some_errors_pass_leaves_them_by_bayes():
    def lenient(_, text):
        return text in ("4", "four")

    rate = error_rate(lenient, n=1, most=1)
    assert rate == pytest.approx(0.05 / 0.65, rel=1e-12)


def test_what_is_kept_is_right_new_and_balanced():
    questions = [
        Question("Compute 1+1=", "2", "arithmetic"),
        Question("Compute 17+15=", "32", "arithmetic"),
        Question("Compute 2+2=", "4", "arithmetic"),
    ]
    said = [[" 2.", "2", " 2.", "3", "2.", " 2"], ["31"], ["4", "4"]]
    found = sift(questions, said, verify, most=2)
    assert all(verify(question, text) for question, text in found.pairs)
    assert len(set(found.pairs)) == len(found.pairs)
    assert Counter(q.answer for q, _ in found.pairs) == {"2": 2, "4": 1}
    assert found.drawn == (6, 1, 2)
    assert found.right == (5, 0, 2)
    assert found.kept == pytest.approx(3 / 9)
    assert found.pass_at(1) == pytest.approx((5 / 6 + 0 + 1) / 3)
    nothing = sift(questions, said, lambda *_: False, most=2)
    assert (nothing.pairs, nothing.kept, nothing.pass_at(1)) == ([], 0, 0)


def test_responses_are_drawn_for_each_prompt_and_end_where_the_model_ends_them():
    tokenizer = Tokenizer(merges=())
    torch.manual_seed(0)
    model = GPT(GPTConfig(260, n_layer=1, n_head=2, n_embd=16, tied=False))
    prompts = ["1+1=", "what is this?"]

    def draw(n, **settings):
        dice = torch.Generator().manual_seed(1)
        return sample_responses(
            model, tokenizer, prompts, n, 6, generator=dice, **settings
        )

    assert draw(3) == draw(3)
    assert [len(texts) for texts in draw(3)] == [3, 3]
    one, two = draw(2, sampling=GREEDY)
    assert one[0] == one[1]
    assert two[0] == two[1]
    with torch.no_grad():  # a model that ends at once says nothing, and no mark of it
        for row in model.lm_head.weight:
            row.zero_()
        h = model.hidden(torch.tensor([tokenizer.encode("a")]))[0, 0]
        model.lm_head.weight[tokenizer.eot] = 1000 * h / h.square().sum()
    said = sample_responses(model, tokenizer, ["a"], 2, 6)
    assert said == [["", ""]]


def test_doors_say_what_is_wrong():
    for n, c, k in ((3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (3, 1.0, 1)):
        with pytest.raises(ValueError, match="c <= n"):
            pass_at_k(n, c, k)
    for p, k in ((-0.1, 1), (1.1, 1), (math.nan, 1), (0.5, 0)):
        with pytest.raises(ValueError, match=r"p must|k must"):
            expected_pass(p, k)
    for prompts, said in ((["a"], []), (["a"], [[]]), ([], []), (["a"], [["b"]] * 2)):
        with pytest.raises(ValueError, match="responses must be for each"):
            sift(prompts, said, anything, most=1)
    with pytest.raises(ValueError, match="most"):
        sift(["a"], [["b"]], anything, most=0)
