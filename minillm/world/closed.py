"""A closed world: a prompt with so few responses that the best policy can be computed.

Alignment looks for the policy that earns reward without leaving the reference far:

    maximise over pi:   E_pi[r] - beta KL(pi || pi_ref)

It has one solution, which for language cannot be written down, because Z sums over all
texts. Where the responses can be listed, it can:

    pi*(y) = pi_ref(y) exp(r(y) / beta) / Z,    Z = sum of pi_ref(y) exp(r(y) / beta)

and the value of the optimum is beta ln Z. So it is known how far PPO, DPO or GRPO come.

Source: Rafailov et al., arXiv:2305.18290, equation 4 and appendix A.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minillm.errors import require
from minillm.world.interpreters import enumerate_documents
from minillm.world.menus import Menu
from minillm.world.preferences import ENDINGS, openings, true_reward
from minillm.world.questions import Question
from minillm.world.recorder import Recorder


@dataclass(frozen=True)
class Optimum:
    """The best policy and what it achieves, in nats and in units of the reward."""

    logprobs: tuple[float, ...]
    log_z: float
    expected_reward: float
    kl: float


def optimum(
    ref_logprobs: Sequence[float], rewards: Sequence[float], beta: float
) -> Optimum:
    """The policy that maximises E[r] - beta KL to the reference.

    Args:
        ref_logprobs: of every response there is; -inf where the reference never goes.
        rewards: of the same responses.
        beta: price of a nat of KL, positive.

    Raises:
        ValueError: unequal lengths, rewards that are not finite, probabilities that do
            not sum to one (the responses are not all there), beta that is not positive.

    >>> best = optimum([math.log(0.5), math.log(0.5)], rewards=[1.0, 0.0], beta=1.0)
    >>> round(math.exp(best.logprobs[0]), 3), round(best.kl, 3)
    (0.731, 0.111)
    """
    n, m = len(ref_logprobs), len(rewards)
    require(n == m > 0, "rewards", m, f"one for each response, {n}", "score them all")
    finite = all(map(math.isfinite, rewards))
    require(finite, "rewards", rewards, "finite", "clip them")
    total = math.fsum(map(math.exp, ref_logprobs))
    whole, need = math.isclose(total, 1, abs_tol=1e-6), "the logs of a distribution"
    require(whole, "ref_logprobs", f"a sum of {total:g}", need, "list all responses")
    require(0 < beta < math.inf, "beta", beta, "positive", "try 0.1")
    scores = [log_p + r / beta for log_p, r in zip(ref_logprobs, rewards, strict=True)]
    top = max(scores)  # exp(r / beta) overflows for small beta; differences do not
    log_z = top + math.log(math.fsum(math.exp(score - top) for score in scores))
    logprobs = tuple(score - log_z for score in scores)
    return Optimum(logprobs, log_z, *value(logprobs, ref_logprobs, rewards))


def value(
    logprobs: Sequence[float], ref_logprobs: Sequence[float], rewards: Sequence[float]
) -> tuple[float, float]:
    """Expected reward and KL to the reference, of any policy over the responses.

    >>> value([0.0, -math.inf], [math.log(0.5)] * 2, rewards=[1.0, 0.0])
    (1.0, 0.6931471805599453)
    """
    reward, kl = [], []
    for log_p, log_ref, r in zip(logprobs, ref_logprobs, rewards, strict=True):
        if log_p > -math.inf:  # 0 ln 0 = 0
            reward.append(math.exp(log_p) * r)
            kl.append(math.exp(log_p) * (log_p - log_ref))
    return math.fsum(reward), math.fsum(kl)


@dataclass(frozen=True)
class ClosedPrompt:
    """A question, all its responses, their reference probabilities and true rewards."""

    question: Question
    responses: tuple[str, ...]
    ref_logprobs: tuple[float, ...]
    rewards: tuple[float, ...]


def closed_prompt(question: Question, answers: Menu) -> ClosedPrompt:
    """Every opening with every answer and every ending, by enumeration.

    Args:
        question: whose answer is one of the menu's, or none.
        answers: what may be said, with the reference's odds.

    >>> question = Question("Compute 1+1=", "2", "arithmetic")
    >>> prompt = closed_prompt(question, Menu((" 2", " 3")))
    >>> len(prompt.responses), prompt.responses[0], round(max(prompt.rewards), 2)
    (32, ' With pleasure: 2.', 4.95)
    """

    def respond(r: Recorder) -> None:
        for parts in (Menu(openings(question)), answers, Menu(ENDINGS)):
            r.choose(parts)

    documents = list(enumerate_documents(respond))
    responses = tuple(document.text for document in documents)
    rewards = tuple(true_reward(question, text) for text in responses)
    logprobs = tuple(-document.nats for document in documents)
    return ClosedPrompt(question, responses, logprobs, rewards)
