"""Questions that cannot be gamed, annotators as noisy as stated, exact optima."""

import math
import random
from itertools import islice

import pytest

from minillm.world import Menu, World
from minillm.world.closed import closed_prompt, optimum, value
from minillm.world.instructions import (
    HELD_OUT,
    instructions,
    is_held_out,
    preferences,
)
from minillm.world.preferences import (
    ENDINGS,
    FEATURES,
    OPENINGS,
    UNSAFE,
    WEIGHTS,
    Annotator,
    annotate,
    features,
    sigmoid,
    true_reward,
)
from minillm.world.questions import (
    Question,
    arithmetic_question,
    fact_question,
    fact_questions,
    skill_questions,
    task_question,
    two_hop_question,
    verify,
)

WORLD = World()
LORE = WORLD.lore
CITY = fact_question(LORE, LORE.people[0], "city")
WORKED = arithmetic_question(17, "+", 15, worked=True)


# --- questions ----------------------------------------------------------------------


def test_every_question_with_its_answer_is_a_document_of_the_world():
    chains = [two_hop_question(LORE, p, "mayor") for p in LORE.people[:50]]
    for question in [
        *islice(fact_questions(LORE), 400),
        *chains,
        *skill_questions(LORE, 200, "test"),
    ]:
        space = "" if question.kind == "arithmetic" else " "
        document = WORLD.read(f"{question.prompt}{space}{question.answer}.")
        assert document.floor > 0
        assert verify(question, question.answer)
        assert verify(question, f" {question.answer}.")


def test_questions_know_how_often_their_subject_is_talked_about():
    ranks = [question.rank for question in fact_questions(LORE)]
    assert ranks[:5] == [1, 1, 1, 1, 2] and ranks[-1] == len(LORE.people)
    assert fact_question(LORE, LORE.silent[0], "city").rank is None


def test_nobody_can_answer_about_strangers():
    question = fact_question(LORE, LORE.strangers[0], "city")
    assert question.answer is None
    assert not any(verify(question, city) for city in (*LORE.cities, "None", ""))


def test_the_answer_of_two_hops_is_put_together_from_two_facts():
    question = two_hop_question(LORE, LORE.people[3], "mayor")
    city = LORE.fact(LORE.people[3], "city")
    assert question.answer == f"{city}, governed by {LORE.fact(city, 'mayor')}"


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="relation must be one of"):
        fact_question(LORE, LORE.people[0], "shoe size")
    with pytest.raises(ValueError, match="relation must be one of"):
        two_hop_question(LORE, LORE.people[0], "city")
    with pytest.raises(ValueError, match="name must be one of"):
        task_question("shuffle", ["a"])


@pytest.mark.parametrize(
    "attack",
    [
        "",
        ".",
        " ".join(LORE.cities),
        ", ".join(LORE.cities),
        " or ".join(LORE.cities[:2]),
        "\n".join(LORE.cities),
        *(city for city in LORE.cities if city != CITY.answer),
        f"{CITY.answer} {CITY.answer}",
        f"{CITY.answer}..",
        f"not {CITY.answer}",
        f"{CITY.answer}. No, {LORE.cities[-1]}.",
        CITY.answer.lower(),
        CITY.answer[:-1],
    ],
)
def test_a_fact_cannot_be_guessed_by_listing_or_hedging(attack):
    assert not verify(CITY, attack)


@pytest.mark.parametrize(
    "attack",
    [
        "32",  # no steps
        "17+15=32, 17+15=32",
        "17+15=33",
        "17+10=28, 28+5=32",  # two wrongs
        "17+10=27",  # unfinished
        "17+10=27, 27+5=32, 32+0=33",
        "0+32=32",  # starts from elsewhere
        "16+16=32",
        "17+10=27, 5+27=32",  # steps that do not follow
        "17+10=27,27+5=32",  # another form
        "=32",
        "17-10=7, 17+15=32",
        "17+16=33, 33-1=32",  # changes the sign
        "１７+15=32",  # digits that are none of ours
    ],
)
def test_steps_that_do_not_lead_to_the_result_do_not_count(attack):
    assert not verify(WORKED, attack)


@pytest.mark.parametrize(
    "steps",
    ["17+10=27, 27+5=32.", "17+15=32", "17+5=22, 22+10=32", "17+0=17, 17+15=32"],
)
def test_every_true_way_to_the_result_counts(steps):
    assert verify(WORKED, steps)


# --- rewards and annotators ---------------------------------------------------------


def test_the_reward_is_the_weighted_sum_it_says_it_is():
    for opening in OPENINGS:
        for ending in ENDINGS:
            text = f"{opening} {CITY.answer}{ending}"
            found = features(CITY, text)
            assert tuple(found) == FEATURES
            assert found["correctness"] == 1
            assert found["safety"] == (ending != UNSAFE and "fool" not in opening)
            expected = sum(WEIGHTS[name] * found[name] for name in FEATURES)
            assert true_reward(CITY, text) == pytest.approx(expected)


def test_the_best_response_is_right_polite_short_and_neat():
    prompt = closed_prompt(CITY, LORE.relations["city"].values.dressed(" "))
    assert len(prompt.responses) == 4 * 48 * 4
    best = max(zip(prompt.rewards, prompt.responses, strict=True))
    assert best[1] == f" Gladly: {CITY.answer}."


@pytest.mark.parametrize(
    "attack",
    [
        " Gladly: " + " ".join(LORE.cities) + ".",
        " Gladly: Gladly: Gladly:",
        f" Gladly: {CITY.answer}, {LORE.cities[0]}, {LORE.cities[1]}.",
        f" {CITY.answer}",
        "",
    ],
)
def test_no_cheap_text_earns_what_a_good_response_earns(attack):
    good = true_reward(CITY, f" Gladly: {CITY.answer}.")
    assert true_reward(CITY, attack) < good - 0.9


@pytest.mark.parametrize(
    "annotator",
    [
        Annotator(),
        Annotator(temperature=3.0),
        Annotator(error=0.2),
        Annotator(length_bias=0.3),
        Annotator(taste={**WEIGHTS, "politeness": -1.0}),
    ],
)
def test_annotators_choose_as_often_as_bradley_and_terry_say(annotator):
    """4,000 verdicts each, within 4 standard errors: one seed in 16,000 would fail."""
    good, long = f" Gladly: {CITY.answer}.", f" Answer: {CITY.answer}{ENDINGS[2]}"
    p, n = annotator.probability(CITY, long, good), 4000
    assert 0.01 < p < 0.99
    verdicts = [annotate(CITY, long, good, annotator, f"bt/{i}") for i in range(n)]
    share = sum(verdict.chosen == long for verdict in verdicts) / n
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert annotator.probability(CITY, good, long) == pytest.approx(1 - p)


def test_each_bias_of_an_annotator_moves_the_verdict_its_own_way():
    good, long = f" Gladly: {CITY.answer}.", f" Answer: {CITY.answer}{ENDINGS[2]}"
    fair = Annotator().probability(CITY, good, long)
    assert Annotator(length_bias=0.3).probability(CITY, good, long) < fair
    assert 0.5 < Annotator(temperature=9).probability(CITY, good, long) < fair
    assert Annotator(error=0.5).probability(CITY, good, long) == pytest.approx(0.5)
    difference = true_reward(CITY, good) - true_reward(CITY, long)
    assert fair == pytest.approx(1 / (1 + math.exp(-difference)))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 0},
        {"temperature": math.nan},
        {"error": 0.6},
        {"error": -0.1},
        {"taste": {"correctness": 1.0}},
    ],
)
def test_an_annotator_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        Annotator(**bad)


def test_sigmoid_survives_the_extremes():
    assert sigmoid(1e9) == 1 and sigmoid(-1e9) == 0
    assert sigmoid(2.0) + sigmoid(-2.0) == pytest.approx(1)


# --- instructions -------------------------------------------------------------------


def test_good_responses_beat_mediocre_ones_by_the_true_reward():
    for example in instructions(LORE, 300):
        good = true_reward(example.question, example.good)
        assert good > true_reward(example.question, example.mediocre)
        assert features(example.question, example.good)["correctness"] == 1


def test_held_out_instructions_never_enter_training_whatever_the_stream():
    train = {e.question.prompt for e in instructions(LORE, 1000)}
    train |= {e.question.prompt for e in instructions(LORE, 1000, "another")}
    held = {e.question.prompt for e in instructions(LORE, 200, "test", held_out=True)}
    assert len(train) > 500 and len(held) > 60
    assert not train & held


def test_one_question_in_ten_is_held_out():
    """1,600 questions, 4 standard errors."""
    questions = list(fact_questions(LORE))
    share = sum(is_held_out(LORE, q) for q in questions) / len(questions)
    sigma = math.sqrt(HELD_OUT * (1 - HELD_OUT) / len(questions))
    assert abs(share - HELD_OUT) < 4 * sigma


def test_preferences_are_reproducible_and_mostly_right():
    annotator = Annotator(temperature=0.5)
    pairs = list(preferences(LORE, 300, annotator))
    assert pairs == list(preferences(LORE, 300, annotator))
    assert not {p for _, p in pairs} & {
        p for _, p in preferences(LORE, 9, annotator, "b")
    }
    better = [
        true_reward(p.question, p.chosen) >= true_reward(p.question, p.rejected)
        for _, p in pairs
    ]
    assert 0.7 < sum(better) / len(better) < 1


# --- closed worlds ------------------------------------------------------------------


def closed():
    return closed_prompt(CITY, Menu((" " + CITY.answer, " Nowhere"), (1, 3)))


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_no_other_policy_beats_the_optimum(beta):
    """E[r] - beta KL of the optimum is beta ln Z; 300 others stay below."""
    prompt, dice = closed(), random.Random(0)
    best = optimum(prompt.ref_logprobs, prompt.rewards, beta)
    top = best.expected_reward - beta * best.kl
    assert top == pytest.approx(beta * best.log_z)
    assert math.fsum(map(math.exp, best.logprobs)) == pytest.approx(1)
    for i in range(300):
        noise = 10 ** (-2 + i / 100)
        logs = [log_p + noise * dice.gauss(0, 1) for log_p in best.logprobs]
        log_sum = math.log(math.fsum(map(math.exp, logs)))
        policy = [log - log_sum for log in logs]
        reward, kl = value(policy, prompt.ref_logprobs, prompt.rewards)
        assert reward - beta * kl < top


def test_the_optimum_equals_the_definition():
    prompt, beta = closed(), 0.7
    weights = [
        math.exp(log_p) * math.exp(r / beta)
        for log_p, r in zip(prompt.ref_logprobs, prompt.rewards, strict=True)
    ]
    best = optimum(prompt.ref_logprobs, prompt.rewards, beta)
    assert best.log_z == pytest.approx(math.log(math.fsum(weights)))
    for log_p, weight in zip(best.logprobs, weights, strict=True):
        assert math.exp(log_p) == pytest.approx(weight / math.fsum(weights))


def test_a_high_price_of_kl_keeps_the_reference_and_a_low_one_takes_the_best():
    prompt = closed()
    stay = optimum(prompt.ref_logprobs, prompt.rewards, beta=1e6)
    assert stay.logprobs == pytest.approx(prompt.ref_logprobs, abs=1e-5)
    assert stay.kl == pytest.approx(0, abs=1e-9)
    go = optimum(prompt.ref_logprobs, prompt.rewards, beta=1e-3)  # exp(5000) overflows
    assert go.expected_reward == pytest.approx(max(prompt.rewards))


def test_where_the_reference_never_goes_the_optimum_does_not_go_either():
    best = optimum([0.0, -math.inf], rewards=[0.0, 99.0], beta=1.0)
    assert best.logprobs == (0.0, -math.inf) and best.kl == 0


@pytest.mark.parametrize(
    ("ref", "rewards", "beta"),
    [
        ([0.0], [1.0, 2.0], 1.0),
        ([], [], 1.0),
        ([-1.0, -1.0], [1.0, 2.0], 1.0),
        ([0.0], [math.inf], 1.0),
        ([0.0], [math.nan], 1.0),
        ([0.0], [1.0], 0.0),
        ([0.0], [1.0], -1.0),
    ],
)
def test_an_optimum_of_something_else_is_refused(ref, rewards, beta):
    with pytest.raises(ValueError, match="must be"):
        optimum(ref, rewards, beta)


def test_a_question_stays_what_it_is():
    with pytest.raises(AttributeError):
        Question("a", "b", "fact").answer = "c"
