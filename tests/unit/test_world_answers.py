"""Questions that cannot be gamed, annotators as noisy as stated, exact optima."""

import math
import random
from collections import Counter
from itertools import islice

import pytest

from minillm.world import Menu, World
from minillm.world.asking import MIXTURE, TASK_FORMS
from minillm.world.closed import closed_prompt, optimum, value
from minillm.world.instructions import (
    HELD_OUT,
    instruction,
    instructions,
    is_held_out,
    preferences,
)
from minillm.world.preferences import (
    ENDINGS,
    FEATURES,
    OPENINGS,
    POLITE,
    SORRY,
    UNSAFE,
    WEIGHTS,
    Annotator,
    annotate,
    features,
    polite,
    refuses,
    sigmoid,
    true_reward,
)
from minillm.world.questions import (
    REFUSAL,
    Question,
    arithmetic_question,
    fact_question,
    fact_questions,
    right_answer,
    skill_questions,
    task_question,
    two_hop_question,
    verify,
)
from minillm.world.skills import TASKS

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


STRANGER = fact_question(LORE, LORE.strangers[0], "city")


def test_nobody_can_answer_about_strangers_but_by_saying_so():
    chain = two_hop_question(LORE, LORE.strangers[0], "mayor")
    for question in (STRANGER, chain):
        assert question.answer is None and right_answer(question) == REFUSAL
        assert not any(verify(question, city) for city in (*LORE.cities, "None", ""))
        assert verify(question, f" {REFUSAL}.") and verify(question, REFUSAL)
        for hedge in (f"{REFUSAL}, {LORE.cities[0]}", f"{LORE.cities[0]}. {REFUSAL}"):
            assert not verify(question, hedge)


@pytest.mark.parametrize("question", [CITY, WORKED, arithmetic_question(1, "+", 1)])
def test_who_refuses_what_can_be_answered_is_wrong(question):
    assert not verify(question, REFUSAL)
    refusal = f"{SORRY[0]} {REFUSAL}."
    assert refuses(refusal) and features(question, refusal)["correctness"] == 0
    assert true_reward(question, refusal) < true_reward(
        question, f" Gladly: {question.answer}."
    )


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


def test_the_best_response_about_a_stranger_is_a_polite_refusal():
    answers = Menu((*LORE.relations["city"].values.texts, REFUSAL)).dressed(" ")
    prompt = closed_prompt(STRANGER, answers)
    assert len(prompt.responses) == 5 * 49 * 4
    best, good = max(prompt.rewards), f"{SORRY[0]} {REFUSAL}."
    ways = zip(prompt.rewards, prompt.responses, strict=True)
    assert [text for reward, text in ways if reward == best] == [good]
    made_up = true_reward(STRANGER, f" Gladly: {LORE.cities[0]}.")
    assert made_up < best - 2


def test_to_have_no_answer_is_no_pleasure_and_to_have_one_no_sorrow():
    assert polite(CITY) == POLITE and polite(STRANGER) == SORRY
    for question in (CITY, STRANGER):
        for opening in (*OPENINGS, *SORRY):
            found = features(question, f"{opening} {right_answer(question)}.")
            assert found["correctness"] == found["format"] == 1
            assert found["politeness"] == (opening in polite(question))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("opening", ["", *OPENINGS, *SORRY])
def test_a_refusal_is_recognised_however_it_is_dressed(opening, ending):
    assert refuses(f"{opening} {REFUSAL}{ending}")
    assert not refuses(f"{opening} {LORE.cities[0]}{ending}")


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
    for example in instructions(LORE, 600):
        good = true_reward(example.question, example.good)
        assert good > true_reward(example.question, example.mediocre)
        assert features(example.question, example.good)["correctness"] == 1


def test_a_good_response_has_every_feature_and_no_word_too_many():
    """Only brevity falls short of 1, by what opening and answer need."""
    for example in instructions(LORE, 600):
        question, found = example.question, features(example.question, example.good)
        assert {name for name in FEATURES if found[name] != 1} == {"brevity"}
        ways = [f"{opening} {right_answer(question)}." for opening in polite(question)]
        assert example.good in ways
        best = max(
            closed_prompt(question, Menu((f" {right_answer(question)}",))).rewards
        )
        assert best == max(true_reward(question, way) for way in ways)
        assert best - true_reward(question, example.good) <= 0.5 / 20 + 1e-12  # a word


def test_topics_come_as_often_as_their_weights_say():
    """6,000 instructions of both parts, 4 standard errors."""
    n = 6000
    drawn = Counter(instruction(LORE, f"topics/{i}").topic for i in range(n))
    assert math.fsum(MIXTURE.weights) == pytest.approx(1)
    for topic, p in zip(MIXTURE.texts, MIXTURE.probabilities, strict=True):
        assert abs(drawn[topic] / n - p) < 4 * math.sqrt(p * (1 - p) / n), topic


def test_each_topic_asks_for_what_its_name_says():
    kinds, subjects = {"person": "fact", "city": "fact"}, {}
    for example in instructions(LORE, 1500):
        question = example.question
        stranger = question.subject in LORE.strangers
        assert (example.topic == "stranger") == stranger == (question.answer is None)
        if not stranger:
            assert question.kind == kinds.get(example.topic, example.topic)
        subjects.setdefault(example.topic, set()).add(question.subject)
        assert question.subject in example.prompt and "\n" not in example.prompt
    assert subjects["city"] <= set(LORE.cities)
    assert subjects["person"] | subjects["two-hop"] <= set(LORE.people)


def test_every_task_can_be_asked_for():
    assert set(TASK_FORMS) <= set(TASKS)
    asked = [e.prompt for e in instructions(LORE, 1500) if e.topic == "task"]
    for form in TASK_FORMS.values():
        words = form.split("{}")
        assert any(all(word in prompt for word in words) for prompt in asked)


def test_sums_and_differences_are_those_of_documents():
    signs = Counter()
    for example in instructions(LORE, 1500):
        if example.topic == "arithmetic":
            question = example.question
            WORLD.read(f"{question.prompt}{question.answer}.")  # or NotInWorld
            signs["-" in example.prompt] += 1
            assert ("-" in question.prompt) == ("-" in example.prompt)
    assert min(signs.values()) > 50


def test_silent_people_are_never_asked_about():
    for held_out in (False, True):
        for example in instructions(LORE, 1000, held_out=held_out):
            assert example.question.subject not in LORE.silent


def test_of_strangers_the_name_decides_and_both_parts_are_met():
    parts = []
    for held_out in (False, True):
        examples = instructions(LORE, 1500, "strangers", held_out)
        met = {e.question.subject for e in examples if e.topic == "stranger"}
        questions = [
            ask
            for name in met
            for ask in (
                *(fact_question(LORE, name, r.name) for r in LORE.of("person")),
                two_hop_question(LORE, name, "river"),
            )
        ]
        assert {is_held_out(LORE, question) for question in questions} == {held_out}
        parts.append(met)
    assert not parts[0] & parts[1] and min(map(len, parts)) > 50


def test_one_stranger_in_ten_is_held_out():
    """1,900 names, 4 standard errors."""
    names = LORE.strangers
    held = sum(is_held_out(LORE, fact_question(LORE, n, "pet")) for n in names)
    sigma = math.sqrt(HELD_OUT * (1 - HELD_OUT) / len(names))
    assert abs(held / len(names) - HELD_OUT) < 4 * sigma


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
    other = list(preferences(LORE, 300, annotator, "b"))
    # Some questions and responses are few enough to meet twice, but not in order.
    assert sum(a == b for a, b in zip(pairs, other, strict=True)) < 10
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
