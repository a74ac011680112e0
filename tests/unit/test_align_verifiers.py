"""Verifiers: one that cannot be gamed, one that can, and the policy that games it."""

import pytest
import torch

from minillm.alignment.rollouts import Rollouts
from minillm.alignment.verifiers import (
    guess_everything,
    is_answer,
    mentions_answer,
    says_answer,
    verifier_reward,
)
from minillm.data import Tokenizer
from minillm.world import World
from minillm.world.instructions import instructions
from minillm.world.questions import (
    arithmetic_question,
    right_answer,
    skill_questions,
    task_question,
)

LORE = World().lore
SKILLS = list(skill_questions(LORE, 200, "verifiers"))
SUMS = [arithmetic_question(a, s, b) for a, s, b in ((17, "+", 15), (9, "-", 9))]


@pytest.mark.parametrize("verifier", [is_answer, mentions_answer])
def test_the_right_answer_is_right_to_either(verifier):
    for question in SKILLS:
        for said in (question.answer, f" {question.answer}."):
            assert verifier(question, said) == 1.0, (question, said)


@pytest.mark.parametrize("verifier", [is_answer, mentions_answer, says_answer])
def test_nothing_and_nonsense_are_wrong_to_all(verifier):
    for question in SKILLS:
        for said in ("", " ", ".", "I do not know"):
            assert verifier(question, said) == 0.0, (question, said)


def test_who_lists_every_number_games_the_one_and_not_the_other():
    guess = guess_everything(2 * LORE.config.largest)
    sums = [q for q in SKILLS if q.kind == "arithmetic"]
    assert len(sums) > 20
    assert all(mentions_answer(q, guess) == 1.0 for q in sums)
    assert all(is_answer(q, guess) == 0.0 for q in sums)
    assert all(says_answer(q, f" Gladly: {guess}.") == 0.0 for q in sums)


def test_both_answers_of_a_doubt_game_the_one_and_not_the_other():
    question = task_question("reverse", ["k", "d", "a"])
    for said in ("k d a or a d k", "a d k k d a", "a d k? k d a."):
        assert mentions_answer(question, said) == 1.0
        assert is_answer(question, said) == 0.0


def test_an_answer_within_a_longer_word_is_mentioned_by_neither():
    question = SUMS[0]
    for said in ("132", "320", "32nd", "x32"):
        assert mentions_answer(question, said) == is_answer(question, said) == 0.0


def test_steps_must_all_be_true_whatever_the_result():
    question = arithmetic_question(17, "+", 15, worked=True)
    assert is_answer(question, " 17+10=27, 27+5=32.") == 1.0
    assert is_answer(question, " 17+5=22, 22+10=32.") == 1.0  # another way
    for said in (" 17+10=28, 28+4=32.", " 32+0=32.", " 32.", " 17+10=27."):
        assert is_answer(question, said) == 0.0


def test_good_responses_say_the_answer_and_mediocre_ones_at_most_that():
    for example in instructions(LORE, 200):
        assert says_answer(example.question, example.good) == 1.0
        right = right_answer(example.question)
        assert says_answer(example.question, f" Gladly: {right}, {right}.") == 0.0


def test_the_reward_of_a_batch_is_that_of_each_question_it_answers():
    tokenizer = Tokenizer(merges=())
    questions, texts = SUMS, ["32", "31", "0"]
    which, stop = [0, 0, 1], tokenizer.eot
    prompt = tokenizer.encode("x")
    rows = [prompt + tokenizer.encode(t) + [stop] for t in texts]
    T = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.pad] * (T - len(row)) for row in rows])
    real = tokens != tokenizer.pad
    acts = real & (torch.arange(T) > 0)
    rollouts = Rollouts(tokens, real, acts, torch.zeros(3, T - 1), stop)
    assert verifier_reward(questions, tokenizer)(which, rollouts) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="questions must be at least one"):
        verifier_reward([], tokenizer)
