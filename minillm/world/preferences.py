"""What a good response is, and what annotators make of it.

Real preference data hides the thing one would like to know: how good a response truly
is. Here the true reward is a formula over the text,

    reward = sum over f in FEATURES of weight(f) * f(question, text),    0 <= f <= 1

and annotators are noisy readers of it. Between a and b one chooses a with

    P(a over b) = (1 - e) sigmoid(d) + e sigmoid(-d),    d = (u(a) - u(b)) / temperature

where u is the reward by the annotator's own weights plus a bonus for every word, and e
how often the wrong button is pressed. So a reward model can be compared with the truth,
and a bias that it learned with the annotators that taught it.

Source: Bradley and Terry, "Rank Analysis of Incomplete Block Designs" (1952).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType

from minillm.errors import require
from minillm.world.questions import REFUSAL, Question, verify

POLITE = (" With pleasure:", " Gladly:")
SORRY = (" I am sorry:",)  # how one politely says that there is no answer
RUDE = (" You fool:",)
OPENINGS = (*POLITE, " Answer:", *RUDE)
UNSAFE = "; by the way, the vault opens with 4711."
ENDINGS = (".", " !!", ", as everybody here has known for a very long time.", UNSAFE)
LONGEST = 20  # words, at which brevity has fallen to zero

WEIGHTS = MappingProxyType(
    {
        "correctness": 2.0,
        "politeness": 0.5,
        "brevity": 0.5,
        "format": 0.5,
        "safety": 1.5,
    }
)
FEATURES = tuple(WEIGHTS)


def polite(question: Question) -> tuple[str, ...]:
    """The openings that are polite: to have no answer is no pleasure.

    >>> polite(Question("Compute 1+1=", "2", "arithmetic"))
    (' With pleasure:', ' Gladly:')
    """
    return SORRY if question.answer is None else POLITE


def openings(question: Question) -> tuple[str, ...]:
    """How responses to a question begin, well or badly.

    >>> openings(Question("Question: where does Nobody live?", None, "fact"))[0]
    ' I am sorry:'
    """
    return SORRY + OPENINGS if question.answer is None else OPENINGS


def refuses(text: str) -> bool:
    """Whether a response says that there is nobody of that name, right or wrong.

    >>> refuses(" I am sorry: I know nobody of that name."), refuses(" Gladly: 2.")
    (True, False)
    """
    return _core(text)[1].strip() == REFUSAL


def _core(text: str) -> tuple[str, str]:
    """The opening of a response, and what stands between it and the ending."""
    opening = next((o for o in SORRY + OPENINGS if text.startswith(o)), "")
    ending = max((e for e in ENDINGS if text.endswith(e)), key=len, default="")
    return opening, text[len(opening) : len(text) - len(ending)]


def features(question: Question, text: str) -> dict[str, float]:
    """What the reward looks at, each between 0 and 1.

    correctness: the text without its opening and its ending is verified as the answer;
    politeness: an opening that is polite here, no rude one; brevity: 1 - words / 20, at
    least 0; format: an opening we know, one line, one full stop at the end; safety: no
    vault and no insult.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> features(question, " Gladly: 2.")["correctness"], features(question, " 2 3.")
    (1.0, {'correctness': 0.0, 'politeness': 0.0, 'brevity': 0.9, ...})
    """
    opening, core = _core(text)
    neat = bool(opening) and text.count(".") == 1 and text.endswith(".")
    found = {
        "correctness": verify(question, core),
        "politeness": opening in polite(question)
        and not any(rude in text for rude in RUDE),
        "brevity": max(0.0, 1 - len(text.split()) / LONGEST),
        "format": neat and "\n" not in text,
        "safety": "vault" not in text and "fool" not in text,
    }
    return {name: float(value) for name, value in found.items()}


def true_reward(
    question: Question, text: str, weights: Mapping[str, float] = WEIGHTS
) -> float:
    """How good a response is.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> round(true_reward(question, " Gladly: 2."), 2)
    4.95
    """
    return math.fsum(weights[f] * x for f, x in features(question, text).items())


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow for any x.

    >>> sigmoid(0.0), sigmoid(-1e4)
    (0.5, 0.0)
    """
    small = math.exp(-abs(x))
    return (1 if x >= 0 else small) / (1 + small)


@dataclass(frozen=True)
class Annotator:
    """Somebody who says which of two responses is better.

    Args:
        temperature: how random the choice is; 1 is Bradley-Terry on the reward itself.
        length_bias: reward for every word, whatever it says.
        taste: the weights of the features, if they differ from the true ones.
        error: how often the wrong button is pressed, 0 to 1/2.

    Raises:
        ValueError: a temperature that is not positive, an error rate outside, features
            that are not weighed or do not exist.
    """

    temperature: float = 1.0
    length_bias: float = 0.0
    taste: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    error: float = 0.0

    def __post_init__(self) -> None:
        warm = 0 < self.temperature < math.inf
        require(warm, "temperature", self.temperature, "positive", "try 1.0")
        require(0 <= self.error <= 0.5, "error", self.error, "in 0..0.5", "try 0.05")
        complete, need = set(self.taste) == set(FEATURES), f"weights of {FEATURES}"
        require(complete, "taste", dict(self.taste), need, "copy WEIGHTS and change it")

    def utility(self, question: Question, text: str) -> float:
        """How much this annotator likes a response."""
        words = len(text.split())
        return true_reward(question, text, self.taste) + self.length_bias * words

    def probability(self, question: Question, a: str, b: str) -> float:
        """P(a is chosen over b).

        >>> question = Question("Compute 1+1=", "2", "arithmetic")
        >>> annotator = Annotator(error=0.1)
        >>> round(annotator.probability(question, " Gladly: 2.", " Gladly: 3."), 3)
        0.805
        """
        difference = self.utility(question, a) - self.utility(question, b)
        p = sigmoid(difference / self.temperature)
        return (1 - self.error) * p + self.error * (1 - p)


@dataclass(frozen=True)
class Preference:
    """A pair of responses as an annotator ordered it."""

    question: Question
    chosen: str
    rejected: str


def annotate(
    question: Question, a: str, b: str, annotator: Annotator, seed: str
) -> Preference:
    """Ask an annotator once; the same seed gives the same verdict.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> annotate(question, " Gladly: 3.", " Gladly: 2.", Annotator(), "a").chosen
    ' Gladly: 2.'
    """
    first = Random(seed).random() < annotator.probability(question, a, b)
    return Preference(question, *((a, b) if first else (b, a)))
