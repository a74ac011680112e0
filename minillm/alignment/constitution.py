"""A constitution: written rules, and responses revised until no rule complains.

Constitutional AI replaces harmfulness labels of people by a short list of principles. A
model reads its own response, says what is against a principle (the critique), and
writes a better one (the revision); again and again, and then learns from the result.

Here critic and reviser are functions of the text, because the rules can be checked;
language models in their place meet the same two limits:

- *A rule can only ask for what it can see.* No rule here knows the truth, so a wrong
  answer becomes a polite, brief, well-formed wrong answer.
- *Rules are somebody's*, who decides what is polite. Two may ask for opposite things;
  then no response pleases both, and the loop has to notice.

Source: Bai et al., arXiv:2212.08073, section 3. Differs from the paper: all rules are
asked, in order, not one at random; the pairs (before, after) are used as preferences,
as in section 4 those of the AI judge, where the paper fine-tunes on the revisions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from minillm.errors import require, require_count
from minillm.world.preferences import (
    ENDINGS,
    OPENINGS,
    RUDE,
    SORRY,
    UNSAFE,
    Preference,
    features,
    polite,
)
from minillm.world.questions import Question

ENTHUSIASM, PADDING = ENDINGS[1:3]


@dataclass(frozen=True)
class Rule:
    """One principle.

    Args:
        name: to speak of it.
        principle: in words, as one would tell it a model.
        broken: the response's features -> whether it is against the principle.
        revise: (question, response) -> a response that is less so.
    """

    name: str
    principle: str
    broken: Callable[[Mapping[str, float]], bool]
    revise: Callable[[Question, str], str]


def open_politely(question: Question, text: str) -> str:
    """Exchange the opening for a polite one; put one in front if there is none.

    >>> open_politely(Question("Compute 1+1=", "2", "arithmetic"), " Answer: 2.")
    ' With pleasure: 2.'
    """
    said = next((o for o in SORRY + OPENINGS if text.startswith(o)), "")
    return polite(question)[0] + text[len(said) :]


def leave_out(*phrases: str) -> Callable[[Question, str], str]:
    """A reviser that strikes phrases and ends the sentence again."""

    def revise(question: Question, text: str) -> str:
        for phrase in phrases:
            text = text.replace(phrase, "")
        return one_sentence(question, text)

    return revise


def one_sentence(question: Question, text: str) -> str:
    """One line that ends in the only full stop.

    >>> one_sentence(Question("Compute 1+1=", "2", "arithmetic"), " Gladly: 2 !!")
    ' Gladly: 2.'
    """
    line = " ".join(text.split("\n")).replace(ENTHUSIASM, "").replace(".", "")
    return line.rstrip() + "."


CONSTITUTION = (
    Rule(
        "no abuse",
        "Never insult anybody, and never say what opens the vault.",
        lambda f: f["safety"] < 1,
        leave_out(*RUDE, UNSAFE),
    ),
    Rule(
        "brief",
        "Say what was asked for and no more: ten words are enough.",
        lambda f: f["brevity"] < 0.5,
        leave_out(PADDING),
    ),
    Rule(
        "polite",
        "Begin with a friendly word, or say that you are sorry if there is no answer.",
        lambda f: f["politeness"] < 1,
        open_politely,
    ),
    Rule(
        "format",
        "Write one line that ends in one full stop.",
        lambda f: f["format"] < 1,
        one_sentence,
    ),
)


def critique(
    question: Question, text: str, rules: Sequence[Rule] = CONSTITUTION
) -> list[str]:
    """The names of the rules that complain about a response, in order.

    >>> critique(Question("Compute 1+1=", "2", "arithmetic"), " You fool: 2 !!")
    ['no abuse', 'polite', 'format']
    """
    found = features(question, text)
    return [rule.name for rule in rules if rule.broken(found)]


@dataclass(frozen=True)
class Revision:
    """How a response was revised.

    Args:
        question: what it responds to.
        drafts: all versions, the first being the original.
        complaints: for each draft, the rules that complained about it.
    """

    question: Question
    drafts: tuple[str, ...]
    complaints: tuple[tuple[str, ...], ...]

    @property
    def settled(self) -> bool:
        """Whether no rule complains about the last draft."""
        return not self.complaints[-1]


def critique_and_revise(
    question: Question,
    text: str,
    rules: Sequence[Rule] = CONSTITUTION,
    max_rounds: int = 8,
) -> Revision:
    """Revise by the first rule that complains, until none does.

    It also ends, unsettled, when a draft returns that was there before: a rule has no
    remedy, or two rules undo each other's.

    Args:
        question: what the response responds to.
        text: the response.
        rules: the constitution.
        max_rounds: revisions at most.

    Raises:
        ValueError: no rules, two of one name, or max_rounds that is no count.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> critique_and_revise(question, " You fool: 2 !!").drafts
    (' You fool: 2 !!', ' 2.', ' With pleasure: 2.')
    """
    require_count(max_rounds=max_rounds)
    by_name = {rule.name: rule for rule in rules}
    different = len(by_name) == len(rules) > 0
    names, need = [rule.name for rule in rules], "of different names, at least one"
    require(different, "rules", names, need, "correct the constitution")
    drafts, complaints = [text], [tuple(critique(question, text, rules))]
    while complaints[-1] and len(drafts) <= max_rounds:
        text = by_name[complaints[-1][0]].revise(question, text)
        if text in drafts:
            break
        drafts.append(text)
        complaints.append(tuple(critique(question, text, rules)))
    return Revision(question, tuple(drafts), tuple(complaints))


def revision_preferences(revisions: Iterable[Revision]) -> list[Preference]:
    """Before and after as preference data: what was revised, if it was settled.

    A response without complaints makes no pair; one that keeps some is no example.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> both = [critique_and_revise(question, said) for said in (" 2.", " Gladly: 2.")]
    >>> [(p.rejected, p.chosen) for p in revision_preferences(both)]
    [(' 2.', ' With pleasure: 2.')]
    """
    return [
        Preference(r.question, chosen=r.drafts[-1], rejected=r.drafts[0])
        for r in revisions
        if r.settled and len(r.drafts) > 1
    ]
