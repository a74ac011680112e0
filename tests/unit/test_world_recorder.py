"""Choices become text and nats; sampling, enumerating and reading agree about them."""

import itertools
import math
from collections import Counter

import pytest

from minillm.world import (
    KINDS,
    PREDICTABLE,
    AmbiguousGrammar,
    Menu,
    NotInWorld,
    check_unambiguous,
    enumerate_documents,
    menu,
    read,
    sample,
)

WHO = Menu((" Ann", " Bo"), (3, 1), ("Ann", "Bo"))
JOBS = Menu((" baker", " cook", " judge"), (2, 1, 1))
TOWNS = Menu((" Ulm", " Ghent"), (1, 4), ("Ulm", "Ghent"))
RIVERS = Menu((" Lys", " Blau"), (1, 1))
SAID = Menu((" works", " lives", "."), (1, 2, 1))
FACTS = {("Ann", "job"): 0, ("Bo", "job"): 2, ("Ann", "town"): 0, ("Bo", "town"): 1}
FACTS |= {("Ulm", "river"): 1, ("Ghent", "river"): 0}


def village(r):
    """A grammar with free choices, a loop, repeated facts, and chains of two facts."""
    r.write("Who?")
    name = r.choose(WHO)
    for _ in range(2):
        said = r.choose(SAID)
        if said == ".":
            return
        if said == " works":
            r.recall(name, "job", JOBS)
        else:
            town = r.recall(name, "town", TOWNS)
            r.write(" by")
            r.recall(town, "river", RIVERS)
    r.write("!")


def dice(r):
    """Free choices only."""
    for _ in range(r.choose(Menu(("1:", "2:", "3:"), (1, 2, 1), (1, 2, 3)))):
        r.choose(Menu(("a", "b", "cc"), (5, 3, 2)))


# --- menus --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"texts": ()},
        {"texts": ("a", "a")},
        {"texts": ("a", "b"), "weights": (1,)},
        {"texts": ("a", "b"), "weights": (1, -1)},
        {"texts": ("a", "b"), "weights": (0, 0)},
        {"texts": ("a", "b"), "weights": (1, math.inf)},
        {"texts": ("a", "b"), "weights": (1, math.nan)},
        {"texts": ("a", "b"), "values": (1,)},
    ],
)
def test_a_menu_refuses_what_is_no_distribution(bad):
    with pytest.raises(ValueError, match="must be"):
        Menu(**bad)


def test_drawing_cuts_the_unit_interval_by_weight_and_never_takes_a_weight_of_zero():
    m = Menu(("never", "half", "gone", "rest"), (0, 2, 0, 2))
    drawn = [m.draw(u) for u in (0.0, 0.4999, 0.5, 1 - 2**-53)]
    assert drawn == [1, 1, 3, 3]


@pytest.mark.parametrize("total", [3, 0.1, 7e300])
def test_the_largest_number_that_dice_give_still_falls_on_the_menu(total):
    m = Menu(("a", "b", "c"), (total / 3,) * 3)
    assert m.draw(1 - 2**-53) == 2


def test_a_clash_is_found_however_far_the_texts_stand_apart():
    assert Menu(("ab", "x", "abc", "abb")).clash == ("ab", "abb")
    assert Menu(("ab", "ba", "aab")).clash is None
    assert Menu(("", "a")).clash == ("", "a")


def test_dressing_changes_the_texts_and_nothing_else():
    dressed = WHO.dressed(" the")
    assert dressed.texts == (" the Ann", " the Bo")
    assert (dressed.weights, dressed.values) == (WHO.weights, WHO.values)
    assert WHO.dressed(" the") is dressed


# --- enumeration: probabilities and injectivity --------------------------------------


@pytest.mark.parametrize(("program", "facts"), [(village, None), (dice, None)])
def test_the_probabilities_of_all_documents_add_up_to_one(program, facts):
    documents = list(enumerate_documents(program, facts))
    total = math.fsum(math.exp(-document.nats) for document in documents)
    assert total == pytest.approx(1, abs=1e-12)
    assert len({document.text for document in documents}) == len(documents) > 30


def test_with_facts_known_the_floors_alone_add_up_to_one():
    documents = list(enumerate_documents(village, FACTS))
    total = math.fsum(math.exp(-document.floor) for document in documents)
    assert total == pytest.approx(1, abs=1e-12)
    assert all(d.total("remembered") > 0 for d in documents if "works" in d.text)


def test_enumeration_counts_by_hand():
    expected = {"1:a": 0.125, "1:b": 0.075, "1:cc": 0.05, "2:acc": 0.05}
    found = {d.text: math.exp(-d.nats) for d in enumerate_documents(dice)}
    assert len(found) == 3 + 9 + 27
    for text, probability in expected.items():
        assert found[text] == pytest.approx(probability, rel=1e-12)


def test_nats_are_the_surprise_averaged_over_all_worlds_that_could_have_been():
    """The sentence on which "remembered" rests: sum over worlds of P(world) P(d|world),
    by brute force, is exp(-nats) for a reader of no facts."""
    priors = {"job": JOBS, "town": TOWNS, "river": RIVERS}
    averaged = Counter()
    for indices in itertools.product(*(range(len(priors[f[1]].texts)) for f in FACTS)):
        facts = dict(zip(FACTS, indices, strict=True))
        p_world = math.prod(priors[f[1]].probabilities[i] for f, i in facts.items())
        for document in enumerate_documents(village, facts):
            averaged[document.text] += p_world * math.exp(-document.floor)
    ignorant = {d.text: d for d in enumerate_documents(village)}
    assert averaged.keys() == ignorant.keys()
    for text, probability in averaged.items():
        assert -math.log(probability) == pytest.approx(ignorant[text].nats, rel=1e-10)


def test_prefix_free_grammars_are_proved_unambiguous():
    assert check_unambiguous(village) == len(list(enumerate_documents(village)))
    assert check_unambiguous(dice) == 39


def test_an_ambiguous_grammar_is_refused_with_both_derivations():
    def clock(r):
        r.choose(menu("1", "12"))
        r.choose(menu("21", "1"))

    with pytest.raises(AmbiguousGrammar) as caught:
        check_unambiguous(clock)
    for part in ("'121'", "('1', '21')", "('12', '1')"):
        assert part in str(caught.value)


def test_a_clash_need_not_be_ambiguous_but_is_refused_where_text_must_be_read():
    def harmless(r):
        r.choose(menu("1", "12"))
        r.write(".")

    assert check_unambiguous(harmless) == 2
    for refused in (lambda: sample(harmless, "a"), lambda: read(harmless, "1.")):
        with pytest.raises(ValueError, match=r"prefix-free.*'1', '12'"):
            refused()


def test_enumeration_gives_up_at_its_limit():
    with pytest.raises(ValueError, match="limit must be"):
        check_unambiguous(dice, limit=10)


# --- sampling -------------------------------------------------------------------------


def test_samples_come_as_often_as_enumeration_says():
    n = 20_000
    counts = Counter(sample(dice, f"count/{i}").text for i in range(n))
    for document in enumerate_documents(dice):
        p = math.exp(-document.nats)
        sigma = math.sqrt(p * (1 - p) / n)  # 39 texts: 5 sigma fails once in 45,000
        assert abs(counts[document.text] / n - p) < 5 * sigma


def test_the_mean_of_nats_is_the_entropy_within_its_standard_error():
    """10,000 documents, four standard errors: one seed in 16,000 would fail."""
    everything = [math.exp(-d.nats) for d in enumerate_documents(dice)]
    entropy = -math.fsum(p * math.log(p) for p in everything)
    nats = [sample(dice, f"mean/{i}").nats for i in range(10_000)]
    mean = math.fsum(nats) / len(nats)
    variance = math.fsum((x - mean) ** 2 for x in nats) / (len(nats) - 1)
    assert abs(mean - entropy) < 4 * math.sqrt(variance / len(nats))


def test_segments_cover_the_text_without_gap_and_predictable_ones_cost_nothing():
    for i in range(200):
        document = sample(village, f"cover/{i}", FACTS)
        ends = [0, *(segment.end for segment in document.segments)]
        assert [segment.start for segment in document.segments] == ends[:-1]
        assert ends[-1] == len(document.text)
        assert all(s.nats == 0 for s in document.segments if s.kind == PREDICTABLE)
        assert math.fsum(map(document.total, KINDS)) == pytest.approx(document.nats)


def test_a_fact_is_paid_once_and_then_predictable():
    def twice(r):
        r.recall("Ann", "job", JOBS)
        r.recall("Ann", "job", JOBS)

    document = sample(twice, "a", FACTS)
    assert document.text == " baker baker"
    assert document.nats == pytest.approx(math.log(2))
    assert document.floor == 0


# --- reading --------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [None, FACTS])
def test_reading_gives_back_every_derivation(facts):
    for document in enumerate_documents(village, facts):
        assert read(village, document.text, facts) == document


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("Why?", 2),
        ("Who? Cleo works baker.", 5),
        ("Who? Ann works baker", 20),  # unfinished
        ("Who? Ann works baker lives Ulm by Blau! ", 39),  # goes on behind the end
        ("Who? Ann works cook.", 15),  # false
        ("Who? Ann lives Ulm by Lys.", 22),  # false in the second hop
        ("Who? Ann works baker works cook!", 27),  # contradicts itself
    ],
)
def test_a_text_that_cannot_be_is_refused_where_it_becomes_impossible(text, position):
    with pytest.raises(NotInWorld) as caught:
        read(village, text, FACTS)
    assert caught.value.position == position


def test_who_knows_no_facts_accepts_a_false_one_but_no_contradiction():
    assert read(village, "Who? Ann works cook.").floor == pytest.approx(
        -math.log(3 / 64)
    )
    with pytest.raises(NotInWorld):
        read(village, "Who? Ann works baker works cook!")


def test_a_choice_of_weight_zero_cannot_be_read():
    def never(r):
        r.choose(Menu(("a", "b"), (1, 0)))

    with pytest.raises(NotInWorld):
        read(never, "b")
