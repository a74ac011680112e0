"""The default world: frozen, as frequent as it says, readable from its text alone."""

import dataclasses
import hashlib
import json
import math
import re
import statistics
from collections import Counter
from itertools import islice

import pytest

from minillm.data import train_bpe
from minillm.world import (
    DOMAINS,
    NotInWorld,
    World,
    WorldConfig,
    check_unambiguous,
    enumerate_documents,
    read,
    sample,
)
from minillm.world.config import zipf_weights
from minillm.world.language import SecondLanguage
from minillm.world.skills import TASKS, transform
from minillm.world.tinyworld import PROGRAMS

N = 20_000
WORLD = World()
TRAIN = list(WORLD.documents(N))
DEFAULT = "874915e79101d883aa6d388563d9c6e2fa0f1a8ca7b1a746c06709ffb58cba21"
SECOND = "f524fd2dfce914f8a2309211fcdc57b14df213baef65668c748f65563f527fd1"

FLOOR, NATS = 11.56931258498427, 17.16192350082017


def sha(world: World, n: int = 2000) -> str:
    text = "\0".join(document.text for document in world.documents(n))
    return hashlib.sha256(text.encode()).hexdigest()


# --- frozen -------------------------------------------------------------------------


def test_the_default_world_says_what_it_has_always_said():
    """To change it on purpose, make another config; this one is what chapters quote."""
    assert sha(WORLD) == DEFAULT


def test_the_floor_of_the_default_world_is_what_it_has_always_been():
    """Nats per document, of the first 2,000."""
    documents = TRAIN[:2000]
    assert math.fsum(d.floor for d in documents) / 2000 == pytest.approx(FLOOR, 1e-9)
    assert math.fsum(d.nats for d in documents) / 2000 == pytest.approx(NATS, 1e-9)


def test_the_second_language_and_the_second_world_are_frozen_too():
    other = World(WorldConfig(language="second", facts="other"))
    assert sha(other) == SECOND


def test_a_document_does_not_depend_on_what_was_asked_before():
    fresh = World()
    assert (
        fresh.document(17, "test").text
        == next(islice(WORLD.documents(18, "test"), 17, None)).text
    )
    assert [d.text for d in fresh.documents(50)] == [d.text for d in TRAIN[:50]]


# --- streams, languages, other facts ------------------------------------------------


def test_streams_do_not_repeat_one_another():
    """Short sums recur by chance. A document of more than 20 nats is among 20,000 with
    probability below 20,000 exp(-20) = 4e-5."""
    train = {document.text for document in TRAIN}
    test = [d.text for d in WORLD.documents(2000, "test") if d.floor > 20]
    assert len(test) > 100
    assert not train.intersection(test)


def test_streams_are_not_correlated():
    """The domains at equal places of two streams agree as often as chance says:
    sum p^2, within 4 standard errors of 5,000 pairs."""
    n, p = 5000, math.fsum(w * w for w in WORLD.config.mixture)
    pairs = zip(TRAIN[:n], WORLD.documents(n, "test"), strict=True)
    same = sum(WORLD.domain(a) == WORLD.domain(b) for a, b in pairs)
    assert abs(same / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_the_second_world_has_the_same_people_and_other_facts():
    lore, other = WORLD.lore, World(WorldConfig(facts="other")).lore
    assert (lore.people, lore.cities) == (other.people, other.cities)
    assert lore.facts.keys() == other.facts.keys()
    cities = [(p, "city") for p in lore.people + lore.silent]
    same = sum(lore.facts[fact] == other.facts[fact] for fact in cities)
    assert same < 30  # of 500 with 48 cities: 10.4 by chance, sigma 3.2


def test_the_second_language_says_the_same_with_the_same_nats():
    second = World(WorldConfig(language="second"))
    for document, original in zip(second.documents(500), TRAIN, strict=False):
        assert second.language.back(document.text) == original.text != document.text
        assert document.nats == original.nats and document.floor == original.floor
        spans = [segment[:4] for segment in document.segments]
        assert spans == [segment[:4] for segment in original.segments]
        chosen = [s for s in document.segments if s.menu]
        assert all(document.text[s.start : s.end] in s.menu.texts for s in chosen)


def test_a_word_that_would_become_a_name_is_refused():
    spelled = SecondLanguage(names=[]).translate("Once")
    with pytest.raises(ValueError, match="become names"):
        SecondLanguage(names=[spelled]).translate("Once")


# --- reading ------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["first", "second"])
def test_thousands_of_texts_are_read_back_to_their_derivation(language):
    world = World(WorldConfig(language=language))
    for document in world.documents(3000, "read"):
        assert world.read(document.text) == document


def test_all_documents_are_different_derivations_or_the_same():
    """Injectivity on a sample: equal texts have equal choices."""
    derivation = {}
    for document in TRAIN:
        assert (
            derivation.setdefault(document.text, document.choices) == document.choices
        )


def test_what_the_world_cannot_have_said_is_refused():
    lore = WORLD.lore
    person, city = lore.people[0], lore.fact(lore.people[0], "city")
    elsewhere = next(name for name in lore.cities if name != city)
    assert WORLD.read(f"About {person}: {person} lives in {city}.").floor > 0
    impossible = [
        "",
        "Hello.",
        "About",
        f"About {person}: {person} lives in {elsewhere}.",
        f"About {person}: {person} lives in {city}, lives in {city}.",
        f"About {lore.silent[0]}: {lore.silent[0]} lives in {city}.",
        f"About {lore.strangers[0]}: {lore.strangers[0]} lives in {city}.",
        "Compute 1+1=3.",
        "Compute 1+20=21.",
        "Task: reverse 2: a b -> a b.",
        "Compute 1+1=2.\n",
    ]
    for text in impossible:
        with pytest.raises(NotInWorld):
            WORLD.read(text)


@pytest.mark.parametrize(
    "text", ["Compute 1+1=2.", "compute", "Kusheti", "About About", "\x00", "Once "]
)
def test_the_second_language_refuses_the_first_and_nonsense(text):
    with pytest.raises(NotInWorld):
        World(WorldConfig(language="second")).read(text)


# --- each domain --------------------------------------------------------------------

TINY = WorldConfig(people=2, silent=1, cities=2, largest=2)


@pytest.mark.parametrize("domain", ["dialogue", "biography", "json", "arithmetic"])
def test_small_worlds_are_enumerated_and_no_two_derivations_collide(domain):
    lore = World(TINY).lore
    head, program = PROGRAMS[domain]

    def whole(r):
        r.write(head)
        program(r, lore)

    assert check_unambiguous(whole, lore.facts) >= 16
    documents = list(enumerate_documents(whole, lore.facts))
    total = math.fsum(math.exp(-document.floor) for document in documents)
    assert total == pytest.approx(1, abs=1e-10)
    entropy = math.fsum(math.exp(-d.floor) * d.floor for d in documents)
    floors = [sample(whole, f"tiny/{i}", lore.facts).floor for i in range(4000)]
    sigma = statistics.stdev(floors) / math.sqrt(len(floors))
    # 4,000 documents, 4 standard errors, 4 domains: one seed in 4,000 would fail.
    assert abs(statistics.fmean(floors) - entropy) < 4 * sigma + 1e-9
    for document in documents[::7]:
        assert read(whole, document.text, lore.facts).choices == document.choices


def test_every_menu_that_is_used_is_prefix_free():
    menus = {s.menu for document in TRAIN for s in document.segments if s.menu}
    assert len(menus) > 100
    assert [menu.clash for menu in menus if menu.clash] == []


def test_facts_are_told_as_they_are():
    lore = WORLD.lore
    for document in TRAIN[:3000]:
        if WORLD.domain(document) == "json":
            record = json.loads(document.text)
            person = record.pop("name")
            assert record
            assert all(lore.fact(person, key) == value for key, value in record.items())


def test_results_are_right_whoever_reckons():
    sums = tasks = 0
    for document in TRAIN:
        for a, sign, b, end in re.findall(r"(\d+)([+-])(\d+)=(\d+)", document.text):
            assert int(end) == int(a) + int(b) * (1 if sign == "+" else -1)
            sums += 1
        found = re.fullmatch(r"Task: (\w+) \d: (.*) -> (.*)\.", document.text)
        if found:
            assert transform(found[1], found[2].split()) == found[3]
            tasks += 1
    assert sums > 2000 and tasks > 1500


def test_the_tasks_do_what_their_names_say():
    items = ["c", "a", "b"]
    expected = ["c a b", "b a c", "b", "C A B", "a b c"]
    assert [transform(name, items) for name in TASKS] == expected


def test_stories_end_where_the_last_move_led():
    """Followed by a reader who knows nothing of the program."""
    told = 0
    for document in TRAIN:
        if WORLD.domain(document) != "story":
            continue
        at = dict(re.findall(r"(\w+) (?:was in|went to) the (\w+)", document.text))
        holder, thing = re.search(r"(\w+) took the (\w+)\.", document.text).groups()
        asked, place = re.search(r"Now (.*) is in the (\w+)\.$", document.text).groups()
        assert place == at[holder if asked == f"the {thing}" else asked]
        told += 1
    assert told > 300


def test_lists_are_added_up():
    for document in TRAIN:
        if WORLD.domain(document) == "list":
            goods, total = document.text.split(";")
            amounts = re.findall(r" (\d) ", goods.split(":")[1])
            assert f" {sum(map(int, amounts))} in all." == total


# --- frequencies --------------------------------------------------------------------


def test_domains_come_as_often_as_the_mixture_says():
    counts = Counter(WORLD.domain(document) for document in TRAIN)
    for name, p in zip(DOMAINS, WORLD.config.mixture, strict=True):
        sigma = math.sqrt(p * (1 - p) / N)  # 8 domains, 4 sigma: one seed in 2,000
        assert abs(counts[name] / N - p) < 4 * sigma


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_people_are_mentioned_with_zipfs_slope(exponent):
    """Maximum likelihood: the mean of ln rank has the expected value of its law. Of
    10,000 draws the mean is within 4 standard errors."""
    world = World(WorldConfig(zipf=exponent, mixture=(0, 0, 0, 1.0, 0, 0, 0, 0)))
    rank = {name: k for k, name in enumerate(world.lore.people, 1)}
    n, logs = 10_000, []
    for document in world.documents(n):
        logs.append(math.log(rank[json.loads(document.text)["name"]]))
    weights = zipf_weights(len(rank), exponent)
    mean = math.fsum(p * math.log(k) for k, p in enumerate(weights, 1))
    spread = math.fsum(p * (math.log(k) - mean) ** 2 for k, p in enumerate(weights, 1))
    assert abs(math.fsum(logs) / n - mean) < 4 * math.sqrt(spread / n)


def test_silent_people_and_strangers_are_never_mentioned():
    text = "\n".join(document.text for document in TRAIN)
    for name in WORLD.lore.silent + WORLD.lore.strangers:
        assert name not in text


def test_silent_people_have_facts_and_strangers_have_none():
    lore = WORLD.lore
    assert lore.fact(lore.silent[0], "job")
    with pytest.raises(ValueError, match="of this world"):
        lore.fact(lore.strangers[0], "job")


def test_a_million_tokens_hold_words_enough_for_a_vocabulary_of_1024():
    """A fifth of them does: 20,000 documents are about 0.4 million tokens."""
    merges = train_bpe([document.text for document in TRAIN], 1024)
    assert len(merges) == 1024 - 256


def test_documents_are_short_with_a_few_long_ones():
    lengths = sorted(len(document.text) for document in TRAIN)
    assert lengths[N // 2] < 80 and 300 < lengths[-1] < 600


# --- doors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": (0.5,) * 8}, "mixture must be weights that sum to 1"),
        ({"mixture": (1.0,)}, "mixture must be a tuple of 8"),
        ({"mixture": (1.5, -0.5, 0, 0, 0, 0, 0, 0)}, "not negative"),
        ({"mixture": (math.nan,) * 8}, "mixture must be"),
        ({"zipf": -1}, "zipf must be"),
        ({"zipf": math.inf}, "zipf must be"),
        ({"zipf": "1"}, "zipf must be"),
        ({"people": 0}, "people must be"),
        ({"people": 1}, "at least 2"),
        ({"people": 2.5}, "people must be"),
        ({"cities": True}, "cities must be"),
        ({"language": "third"}, "language must be"),
        ({"seed": 7}, "seed must be"),
        ({"people": 2400}, "people and silent must be"),
        ({"cities": 401}, "cities must be"),
    ],
)
def test_a_world_that_cannot_be_is_refused_with_a_reason(settings, message):
    with pytest.raises(ValueError, match=message):
        World(WorldConfig(**settings))


def test_a_config_cannot_be_changed_behind_the_worlds_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WORLD.config.zipf = 2.0
