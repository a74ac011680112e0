r"""Rewards that can be checked: is the answer right?

Where the truth is known no reward model is needed: reward = 1 if the answer is right,
else 0. What is easily overlooked is that a verifier is a *specification*, and that the
policy will find whatever it lets pass. Two of them:

- ``is_answer`` asks whether the response *is* the answer. Nothing else earns anything.
- ``mentions_answer`` asks whether the response *holds* the answer somewhere, which is
  what one writes first, because it forgives every form. It also forgives every
  content: ``guess_everything`` earns 1 for any sum without adding anything up.

Source: Lambert et al. 2024 (Tulu 3), section 6, for rewards that can be verified;
Skalse et al. 2022 for what hacking a reward is.
"""

import re
from collections.abc import Callable, Sequence

from minillm.alignment.loop import Reward
from minillm.alignment.rollouts import Rollouts
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require
from minillm.world.preferences import features
from minillm.world.questions import Question, right_answer, verify

Verifier = Callable[[Question, str], float]


def is_answer(question: Question, text: str) -> float:
    """1 if the text is the answer and nothing but the answer, else 0.

    Of worked sums every step has to be true; see ``world.questions.verify``.

    >>> question = Question("Compute 17+15=", "32", "arithmetic")
    >>> [is_answer(question, said) for said in ("32.", "31 32", "32 or so", "")]
    [1.0, 0.0, 0.0, 0.0]
    """
    return float(verify(question, text))


def says_answer(question: Question, text: str) -> float:
    """1 if the text is the answer within one of the openings and endings of responses.

    For models that were taught to respond. What stands between opening and ending must
    be the answer and no more, so this cannot be gamed either; that an opening may be
    rude is the business of other rewards.

    >>> question = Question("Compute 17+15=", "32", "arithmetic")
    >>> [says_answer(question, said) for said in (" Gladly: 32.", " Gladly: 31 32.")]
    [1.0, 0.0]
    """
    return features(question, text)["correctness"]


def mentions_answer(question: Question, text: str) -> float:
    """1 if the answer stands somewhere in the text, as a word of its own. Can be gamed.

    >>> question = Question("Compute 17+15=", "32", "arithmetic")
    >>> [mentions_answer(question, said) for said in ("32.", "132", "31 or 32")]
    [1.0, 0.0, 1.0]
    """
    answer = re.escape(right_answer(question))
    return float(re.search(rf"(?<!\w){answer}(?!\w)", text) is not None)


def guess_everything(largest: int) -> str:
    """The exploit: a response that holds the answer to every sum, and knows none.

    >>> guess_everything(3)
    '0 1 2 3'
    """
    return " ".join(str(n) for n in range(largest + 1))


def verifier_reward(
    questions: Sequence[Question], tokenizer: Tokenizer, verifier: Verifier = is_answer
) -> Reward:
    """What the training loops ask: the reward of each rollout.

    Args:
        questions: in the order of the prompts.
        tokenizer: turns completions into text, without the stop token.
        verifier: of one response.

    Returns:
        a function of (which prompt each row answers, rollouts).

    >>> import torch
    >>> tokenizer = Tokenizer(merges=())
    >>> tokens = torch.tensor([tokenizer.encode("1+1=2")])
    >>> acts = torch.arange(5)[None] == 4
    >>> rollouts = Rollouts(tokens, tokens > 0, acts, torch.zeros(1, 4))
    >>> reward = verifier_reward([Question("1+1=", "2", "arithmetic")], tokenizer)
    >>> reward([0], rollouts)
    [1.0]
    """
    require(len(questions) > 0, "questions", questions, "at least one", "ask something")

    def reward(which: Sequence[int], rollouts: Rollouts) -> list[float]:
        texts = rollouts.texts(tokenizer)
        return [verifier(questions[i], t) for i, t in zip(which, texts, strict=True)]

    return reward
