"""Asking: what was said, whether it is right, and what the confidence is worth."""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rigged import Rigged
from torch import nn

from minillm.data import Tokenizer
from minillm.evaluation.asking import (
    Answer,
    accuracy,
    ask,
    calibration_error,
    completion_logprobs,
    confidence,
    reliability,
)
from minillm.model import GPT, GREEDY, GPTConfig, Sampling, generate
from minillm.model.generation import Generation
from minillm.world.questions import Question, arithmetic_question

TOKENIZER = Tokenizer(merges=())
EOT, V = TOKENIZER.eot, TOKENIZER.vocab_size
NOTHING = torch.full((V,), -math.log(V), dtype=torch.float64)  # who knows nothing


def question(prompt: str, answer: str | None) -> Question:
    return Question(prompt, answer, "fact")


def rigged(script: dict[str, tuple[str, list[float]]], context: int = 64) -> Rigged:
    """A model that says this to each prompt, each token and the end with these p."""
    table = {}
    for prompt, (answer, probabilities) in script.items():
        row = (EOT, *TOKENIZER.encode(prompt))
        said = [*TOKENIZER.encode(answer), EOT]
        for token, p in zip(said, probabilities, strict=True):
            scores = torch.full((V,), (1 - p) / (V - 1), dtype=torch.float64)
            scores[token] = p
            table[row] = scores.log()
            row = (*row, token)
    return Rigged(lambda before: table.get(before, NOTHING), V, context)


SCRIPT = {
    "What is the very longest question?": ("42", [0.5, 0.25, 0.5]),
    "Who?": ("Ann Bo.", [0.9, 0.8, 0.7, 0.9, 0.8, 0.7, 0.6, 0.5]),
    "And?": ("", [0.75]),
    "Where is it": (" Rome", [0.5, 0.9, 0.9, 0.9, 0.9, 0.9]),
}
QUESTIONS = [
    question("Who?", "Ann Bo"),
    question("What is the very longest question?", "43"),
    question("Where is it", "Rome"),
    question("And?", "nothing"),
    question("Who?", None),  # nobody: whatever is said is wrong
]


# --- asking -------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 2, 64])
def test_answers_come_in_the_order_of_the_questions_and_are_judged(B):
    answers = ask(rigged(SCRIPT), TOKENIZER, QUESTIONS, 16, B)
    assert [a.question for a in answers] == QUESTIONS
    assert [a.text for a in answers] == ["Ann Bo.", "42", " Rome", "", "Ann Bo."]
    assert [a.right for a in answers] == [True, False, True, False, False]
    assert accuracy(answers) == 2 / 5


@pytest.mark.parametrize("B", [1, 3])
def test_confidence_is_the_product_of_what_was_given_to_each_token_and_the_end(B):
    for answer in ask(rigged(SCRIPT), TOKENIZER, QUESTIONS, 16, B):
        by_hand = math.prod(SCRIPT[answer.question.prompt][1])
        assert answer.confidence == pytest.approx(by_hand, rel=1e-9)


def test_an_answer_that_is_cut_short_is_sure_only_of_what_was_said():
    (answer,) = ask(rigged(SCRIPT), TOKENIZER, [QUESTIONS[0]], max_new_tokens=3)
    assert answer.text == "Ann" and not answer.right
    assert answer.confidence == pytest.approx(0.9 * 0.8 * 0.7, rel=1e-9)


def test_nothing_is_said_behind_the_end():
    script = {"Q": ("a", [0.9, 0.9]), "Longer": ("bcdef", [0.9] * 6)}
    questions = [question("Q", "a"), question("Longer", "bcdef")]
    first, second = ask(rigged(script), TOKENIZER, questions, 12)
    assert (first.text, second.text) == ("a", "bcdef")  # one goes on, the other not


def test_no_questions_have_no_answers():
    assert ask(rigged(SCRIPT), TOKENIZER, []) == []


def test_a_prompt_that_is_too_long_is_refused_before_any_other_is_answered():
    model = rigged(SCRIPT, context=20)
    short, long = question("Who?", "Ann"), question("x" * 17, "y")
    with pytest.raises(ValueError, match="must be at most 20, the model's context"):
        ask(model, TOKENIZER, [short, short, long], max_new_tokens=3, B=1)
    assert model.modes == []
    assert len(ask(model, TOKENIZER, [short, question("x" * 16, "y")], 3, B=1)) == 2


@pytest.mark.parametrize("B", [0, -1, 2.0])
def test_batches_of_no_questions_are_refused(B):
    with pytest.raises(ValueError, match="B must be an int of at least 1"):
        ask(rigged(SCRIPT), TOKENIZER, QUESTIONS, B=B)


# --- what a completion was worth ----------------------------------------------------


def spread_model() -> GPT:
    """A float64 model with opinions: large weights, so that errors would show."""
    model = GPT(GPTConfig(V, n_layer=2, n_head=2, n_embd=16, context=64)).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4)
    return model


@torch.no_grad()
def by_definition(model: GPT, prompt: list[int], completion: list[int]) -> float:
    """Token after token, the row alone."""
    total, row = 0.0, list(prompt)
    for token in completion:
        total += model(torch.tensor([row]))[0, -1].log_softmax(-1)[token].item()
        row.append(token)
    return total


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.7, top_k=5), None])
@pytest.mark.parametrize("prompts", [[[1, 2, 3], [4], [5, 6]], [[7]]])
def test_completions_are_scored_as_if_each_row_were_alone(prompts, sampling):
    model = spread_model()
    free = generate(model, prompts, 9, GREEDY).completions()
    stop = free[0][3]  # so that rows end at different places, one of them early
    written = generate(model, prompts, 9, sampling, stop)
    mask = written.mask.clone()
    found = completion_logprobs(model, written)
    rows = zip(prompts, written.completions(), strict=True)
    expected = [by_definition(model, prompt, said) for prompt, said in rows]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert not found.requires_grad and written.mask.equal(mask)


def test_padding_that_scores_nothing_or_nonsense_is_no_part_of_the_score():
    tokens = torch.tensor([[1, 2, 3, 4, 5], [9, 9, 3, 4, 9]])
    never_nine = NOTHING.clone()
    never_nine[9] = -math.inf
    model = Rigged(lambda before: never_nine if before else NOTHING * math.nan, V)
    found = completion_logprobs(model, Generation(tokens, tokens != 9, 3))
    expected = [2 * -math.log(V - 1), -math.log(V - 1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_asking_leaves_the_model_in_its_mode(training):
    model = spread_model().train(training)
    ask(model, TOKENIZER, [question("Who?", "Ann")], 3)
    assert model.training is training and model.layers[0].training is training


# --- means --------------------------------------------------------------------------


def test_means_over_answers_by_hand():
    asked = question("Who?", "Ann")
    answers = [Answer(asked, said, p) for said, p in [(" Ann.", 0.5), ("Bo", 0.125)]]
    assert (accuracy(answers), confidence(answers)) == (0.5, 0.3125)
    worked = Answer(arithmetic_question(1, "+", 2), "03", 1.0)
    assert accuracy([worked]) == 0.0


def test_means_over_no_answers_are_no_numbers():
    assert math.isnan(accuracy([])) and math.isnan(confidence([]))


# --- calibration --------------------------------------------------------------------


def test_reliability_and_its_error_by_hand():
    confidences = [0.75, 0.25, 1.0, 0.5, 0.875, 0.375]
    right = [True, True, True, False, False, False]
    expected = [(0.3125, 0.5, 2), (0.625, 0.5, 2), (0.9375, 0.5, 2)]
    assert reliability(confidences, right, bins=3) == expected
    by_hand = (2 * 0.1875 + 2 * 0.125 + 2 * 0.4375) / 6
    assert calibration_error(confidences, right, bins=3) == pytest.approx(by_hand)


def test_unequal_bins_weigh_by_their_answers():
    found = reliability([0.0, 0.25, 0.5, 0.75, 1.0], [False] * 5, bins=2)
    assert [n for _, _, n in found] == [2, 3]
    error = calibration_error([0.0, 0.25, 0.5, 0.75, 1.0], [False] * 5, bins=2)
    assert error == pytest.approx((2 * 0.125 + 3 * 0.75) / 5)


def test_more_bins_than_answers_leave_one_answer_a_bin():
    found = reliability([0.5, 0.25, 1.0], [True, False, True], bins=8)
    assert found == [(0.25, 0.0, 1), (0.5, 1.0, 1), (1.0, 1.0, 1)]
    assert reliability([0.5], [True], bins=8) == [(0.5, 1.0, 1)]


@pytest.mark.parametrize("bins", [1, 2, 3, 8, 100])
def test_answers_of_equal_confidence_share_a_bin_in_whatever_order_they_came(bins):
    # Sorted by confidence alone, those that are right would fill the first bins, and
    # a model as calibrated as can be would seem to be wrong by a half.
    right = [True] * 6 + [False] * 6
    assert reliability([0.5] * 12, right, bins) == [(0.5, 0.5, 12)]
    assert calibration_error([0.5] * 12, right, bins) == 0.0


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    bins=st.integers(1, 12),
)
def test_reliability_says_the_same_of_shuffled_answers_and_loses_none(data, bins):
    def of(pairs):
        return reliability([c for c, _ in pairs], [r for _, r in pairs], bins)

    found = of(data)
    assert found == of(sorted(data)) == of(sorted(data, key=lambda pair: not pair[1]))
    assert sum(n for _, _, n in found) == len(data) and len(found) <= bins
    assert sum(n * p for _, p, n in found) == pytest.approx(sum(r for _, r in data))
    sure = [c for c, _, _ in found]
    assert sure == sorted(set(sure))


def test_answers_that_are_right_as_often_as_they_say_have_next_to_no_error():
    # 20,000 answers in 8 bins of 2,500: a bin's accuracy is off its confidence by a
    # mean of at most 0.8 sigma, sigma = 0.5 / 50 = 0.01; the mean over 8 bins of these
    # has a deviation of at most 0.01 / sqrt(8) = 0.0035. So 0.008 + 4 * 0.0035.
    dice = Random("calibrated").random
    confidences = [dice() for _ in range(20_000)]
    right = [dice() < c for c in confidences]
    assert calibration_error(confidences, right) < 0.022
    # Who is too sure by sqrt is off by the mean of sqrt(c) - c, 2/3 - 1/2.
    bold = [math.sqrt(c) for c in confidences]
    assert calibration_error(bold, right) == pytest.approx(1 / 6, abs=0.022)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": [True]}, "right must be as many as confidences and at least one"),
        ({"confidences": [], "right": []}, "right must be as many as confidences"),
        ({"confidences": [0.5, -2.0]}, "confidences must be in 0..1"),  # a logprob
        ({"confidences": [0.5, 1.5]}, "confidences must be in 0..1"),
        ({"confidences": [0.5, math.nan]}, "confidences must be in 0..1"),
        ({"bins": 0}, "bins must be an int of at least 1"),
    ],
    ids=str,
)
def test_what_has_no_reliability_is_refused_at_the_door(change, message):
    arguments = {"confidences": [0.5, 0.75], "right": [True, False], "bins": 2}
    for measure in (reliability, calibration_error):
        with pytest.raises(ValueError, match=message):
            measure(**(arguments | change))
