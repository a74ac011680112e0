r"""AI feedback: a judge compares two responses, with faults that are known.

RLAIF lets a language model say which of two responses is better. It is cheap, always
there, and it has habits: it prefers what stands first, or what is longer, and it will
not decide where two are close. Real judges hide how much of each. This one does not: it
is a noisy reader of the true reward, made of the same parts as an ``Annotator``,

.. math::
    d = \frac{u(\text{first}) + b - u(\text{second})}{\tau}, \qquad
    u = \text{reward by its taste} + \ell \cdot \text{words}

    P(first) = \sigma(d - \theta), \quad P(second) = \sigma(-d - \theta), \quad
    P(tie) = 1 - P(first) - P(second)

with position bias b, length bias l, temperature tau and the width of a tie theta. At
theta = 0 it is Bradley-Terry and never ties.

``swap_debiased`` asks in both orders and believes only what is said twice. What that
cures and what not can be seen in the formulas: b changes its sign when the order does,
so its verdict no longer depends on the order; l and the taste do not change theirs, and
come out as they went in. It costs two calls and turns many close pairs into ties.

Source: Lee et al., arXiv:2309.00267 (RLAIF); Zheng et al., arXiv:2306.05685, for the
biases and the swap; Rao and Kupper (1967) for ties.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from minillm.errors import require
from minillm.world.preferences import WEIGHTS, Annotator, Preference, sigmoid
from minillm.world.questions import Question

FIRST, SECOND, TIE = "first", "second", "tie"


class Odds(NamedTuple):
    """How probable each verdict is."""

    first: float
    second: float
    tie: float


@dataclass(frozen=True)
class Judge:
    """Somebody artificial who compares two responses.

    Args:
        temperature: how random the verdicts are; near 0, the better one by its own
            lights always wins.
        position_bias: reward for standing first; negative prefers the second.
        length_bias: reward for every word, whatever it says.
        tie_width: theta, in units of d; 0 never ties.
        taste: the weights of the features, if they differ from the true ones.
        seed: names the stream of its draws. Asked the same again it says the same;
            asked in the other order, it draws anew.

    Raises:
        ValueError: a temperature that is not positive, a negative width, features that
            are not weighed or do not exist.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> Judge(temperature=0.01)(question, " Gladly: 3.", " Gladly: 2.")
    'second'
    """

    temperature: float = 1.0
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_width: float = 0.0
    taste: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    seed: str = "judge"

    def __post_init__(self) -> None:
        width, biases = self.tie_width, (self.position_bias, self.length_bias)
        require(width >= 0, "tie_width", width, "at least 0", "0 never ties")
        finite = all(map(math.isfinite, biases))
        require(finite, "position_bias, length_bias", biases, "finite", "0 is none")
        _ = self._reader  # checks the rest

    @property
    def _reader(self) -> Annotator:
        return Annotator(self.temperature, self.length_bias, self.taste)

    def odds(self, question: Question, first: str, second: str) -> Odds:
        """The exact probabilities of its verdicts.

        >>> question = Question("Compute 1+1=", "2", "arithmetic")
        >>> odds = Judge(position_bias=1.0).odds(question, " Gladly: 2.", " Gladly: 2.")
        >>> [round(p, 3) for p in odds]
        [0.731, 0.269, 0.0]
        """
        utility = self._reader.utility
        ahead = utility(question, first) - utility(question, second)
        d = (ahead + self.position_bias) / self.temperature
        p, q = sigmoid(d - self.tie_width), sigmoid(-d - self.tie_width)
        return Odds(p, q, max(0.0, 1 - p - q))

    def __call__(self, question: Question, first: str, second: str) -> str:
        """One verdict: "first", "second" or "tie"."""
        asked = f"{self.seed}/{question.prompt}/{first}/{second}"
        u, odds = Random(asked).random(), self.odds(question, first, second)
        if u < odds.first:
            return FIRST
        return SECOND if u >= odds.first + odds.tie else TIE


@dataclass(frozen=True)
class SwapDebiased:
    """A judge asked in both orders; what is not said twice is a tie."""

    judge: Judge

    def odds(self, question: Question, first: str, second: str) -> Odds:
        """The exact probabilities for two texts that differ; both calls draw anew."""
        here = self.judge.odds(question, first, second)
        there = self.judge.odds(question, second, first)
        p, q = here.first * there.second, here.second * there.first
        return Odds(p, q, max(0.0, 1 - p - q))

    def __call__(self, question: Question, first: str, second: str) -> str:
        """One verdict, from two calls."""
        here = self.judge(question, first, second)
        there = self.judge(question, second, first)
        mirrored = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}[there]
        return here if here == mirrored else TIE


def swap_debiased(judge: Judge) -> SwapDebiased:
    """The same judge without its position bias, at twice the price.

    Left as they are: length bias, taste, and noise (less of it: two draws must agree).

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> judge = Judge(temperature=0.1, position_bias=9.0)
    >>> said = " Gladly: 2.", " Gladly: 3."
    >>> judge(question, *said), judge(question, *said[::-1])
    ('first', 'first')
    >>> swap_debiased(judge)(question, *said)
    'tie'
    """
    return SwapDebiased(judge)


def label(
    judge: Judge | SwapDebiased,
    candidates: Iterable[tuple[Question, str, str]],
    seed: str = "order",
) -> list[Preference]:
    """What a judge prefers, of pairs shown in a random order, without the ties.

    A tie counted for either side is a preference that nobody had. And a judge who is
    always shown the same model's response first teaches his position bias as quality.

    Args:
        judge: (question, first, second) -> "first", "second" or "tie".
        candidates: a question and two responses each.
        seed: names the stream that decides which one is shown first.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> pairs = [(question, " Gladly: 2.", " Gladly: 3."), (question, " 2.", " 2.")]
    >>> [p.chosen for p in label(Judge(temperature=0.01), pairs)]
    [' Gladly: 2.']
    """
    found = []
    for index, (question, a, b) in enumerate(candidates):
        swap = Random(f"{seed}/{index}").random() < 0.5
        first, second = (b, a) if swap else (a, b)
        verdict = TIE if a == b else judge(question, first, second)
        if verdict == FIRST:
            found.append(Preference(question, first, second))
        elif verdict == SECOND:
            found.append(Preference(question, second, first))
    return found
