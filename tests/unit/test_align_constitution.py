"""Critique and revision: what rules cure, what they cannot see, and when to stop."""

from itertools import product

import pytest

from minillm.alignment.constitution import (
    CONSTITUTION,
    Rule,
    critique,
    critique_and_revise,
    leave_out,
    one_sentence,
    open_politely,
    revision_preferences,
)
from minillm.world import World
from minillm.world.instructions import instructions
from minillm.world.preferences import ENDINGS, features, openings, true_reward
from minillm.world.questions import Question

QUESTION = Question("Compute 1+1=", "2", "arithmetic")
STRANGER = Question("Question: where does Nobody live?", None, "fact")
WORST = " You fool: 2; by the way, the vault opens with 4711."


def everything():
    """Every opening with a right or wrong answer and every ending."""
    for question, answers in ((QUESTION, (" 2", " 3")), (STRANGER, (" in Jutham",))):
        for parts in product((*openings(question), ""), answers, (*ENDINGS, "")):
            yield question, "".join(parts)


def test_each_rule_complains_about_its_own_fault_alone():
    cases = {
        " Gladly: 2.": [],
        " Answer: 2.": ["polite"],
        " 2.": ["polite", "format"],
        " Gladly: 2 !!": ["format"],
        " Gladly: 2, as everybody here has known for a very long time.": ["brief"],
        " Gladly: 2; by the way, the vault opens with 4711.": ["no abuse"],
        " You fool: 2.": ["no abuse", "polite"],
        " Gladly: 2.\nand 3": ["format"],
    }
    for said, complaints in cases.items():
        assert critique(QUESTION, said) == complaints, said
    assert critique(STRANGER, " Gladly: I know nobody of that name.") == ["polite"]
    assert critique(STRANGER, " I am sorry: I know nobody of that name.") == []


def test_every_response_of_the_closed_world_settles_and_no_rule_complains():
    for question, said in everything():
        revision = critique_and_revise(question, said)
        assert revision.settled, revision
        assert critique(question, revision.drafts[-1]) == []
        assert revision.drafts[0] == said
        assert len(revision.drafts) == len(revision.complaints) <= 5


def test_revision_never_lowers_the_true_reward_and_ends_with_four_full_features():
    for question, said in everything():
        last = critique_and_revise(question, said).drafts[-1]
        assert true_reward(question, last) >= true_reward(question, said)
        found = features(question, last)
        assert found["politeness"] == found["format"] == found["safety"] == 1


def test_a_wrong_answer_becomes_a_polite_wrong_answer():
    """No rule knows the truth, so none can ask for it."""
    right, wrong = (critique_and_revise(QUESTION, f" You fool: {n} !!") for n in (2, 3))
    assert right.drafts[-1] == " With pleasure: 2."
    assert wrong.drafts[-1] == " With pleasure: 3."
    before, after = (features(QUESTION, d) for d in (wrong.drafts[0], wrong.drafts[-1]))
    assert before["correctness"] == after["correctness"] == 0.0


def test_correctness_stays_what_it_was_for_all_mediocre_responses():
    lore = World().lore
    for asked in instructions(lore, 100, "constitution"):
        revision = critique_and_revise(asked.question, asked.mediocre)
        before = features(asked.question, asked.mediocre)["correctness"]
        after = features(asked.question, revision.drafts[-1])["correctness"]
        assert before == after, revision
        assert critique_and_revise(asked.question, asked.good).drafts == (asked.good,)


def test_the_first_rule_that_complains_revises_first_and_each_draft_is_kept():
    revision = critique_and_revise(QUESTION, WORST)
    assert revision.drafts == (WORST, " 2.", " With pleasure: 2.")
    assert revision.complaints == (
        ("no abuse", "brief", "polite"),
        ("polite", "format"),
        (),
    )


def test_rules_that_contradict_each_other_end_unsettled():
    warm = CONSTITUTION[2]
    cold = Rule(
        "sober",
        "No friendly words.",
        lambda f: f["politeness"] == 1,
        lambda question, text: text.replace(" With pleasure:", " Answer:"),
    )
    revision = critique_and_revise(QUESTION, " Answer: 2.", [warm, cold])
    assert not revision.settled
    assert revision.drafts == (" Answer: 2.", " With pleasure: 2.")
    assert revision_preferences([revision]) == []


def test_a_rule_without_a_remedy_ends_unsettled():
    never = Rule("never", "Be silent.", lambda f: True, lambda question, text: text)
    revision = critique_and_revise(QUESTION, " Gladly: 2.", [never])
    assert revision.drafts == (" Gladly: 2.",) and not revision.settled
    long = " Gladly: " + "a " * 30 + "b."
    assert not critique_and_revise(QUESTION, long).settled, "there is nothing to strike"


def test_revisions_stop_after_so_many_rounds():
    more = Rule("more", "Go on.", lambda f: True, lambda question, text: text + " 2")
    revision = critique_and_revise(QUESTION, " 2", [more], max_rounds=3)
    assert revision.drafts == (" 2", " 2 2", " 2 2 2", " 2 2 2 2")
    assert not revision.settled


def test_pairs_are_the_first_and_the_last_draft_of_what_was_revised():
    said = (" Gladly: 2.", WORST, " Answer: 3.")
    pairs = revision_preferences(critique_and_revise(QUESTION, s) for s in said)
    assert [(p.rejected, p.chosen) for p in pairs] == [
        (WORST, " With pleasure: 2."),
        (" Answer: 3.", " With pleasure: 3."),
    ]
    assert all(p.question is QUESTION for p in pairs)


def test_revisers_leave_alone_what_is_right_and_bear_what_is_empty():
    for revise in (open_politely, one_sentence, leave_out(" !!")):
        for text in ("", ".", "\n", " Gladly: 2."):
            again = revise(QUESTION, revise(QUESTION, text))
            assert again == revise(QUESTION, text), "twice is once"
    assert open_politely(QUESTION, " I am sorry: 2.") == " With pleasure: 2."
    assert open_politely(STRANGER, " Gladly: no.") == " I am sorry: no."


def test_impossible_constitutions_are_refused():
    with pytest.raises(ValueError, match="rules must be of different names"):
        critique_and_revise(QUESTION, " 2.", [])
    with pytest.raises(ValueError, match="rules must be of different names"):
        critique_and_revise(QUESTION, " 2.", [CONSTITUTION[0]] * 2)
    with pytest.raises(ValueError, match="max_rounds must be an int"):
        critique_and_revise(QUESTION, " 2.", max_rounds=0)
