"""Chapter 13: how many fresh pairs does a step of online DPO get, and at what price?"""

import random

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees, all_params


def fresh_pairs(params):
    """Prompts with a right and a wrong response among K, and the tokens for each."""
    P, K, p = params["prompts"], params["responses"], params["right"]
    pairs = P * (1 - p**K - (1 - p) ** K)
    return {"pairs": pairs, "tokens": P * K * params["length"] / pairs}


def steps(rng: random.Random) -> dict:
    """A step of online DPO with a verifier as judge."""
    return {
        "prompts": rng.choice([16, 24, 48, 96]),
        "responses": rng.choice([3, 4]),
        "right": rng.choice([0.25, 0.3, 0.4, 0.6, 0.7, 0.75]),
        "length": rng.choice([5, 12, 30, 200]),
    }


def _given(params, share) -> dict:
    P, K = params["prompts"], params["responses"]
    return {"pairs": P * share, "tokens": K * params["length"] / share}


def all_right_counted(params):
    """A prompt whose responses are all right was counted. Nothing is wrong there to be
    rejected: it gives no pair."""
    return _given(params, 1 - (1 - params["right"]) ** params["responses"])


def all_wrong_counted(params):
    """A prompt whose responses are all wrong was counted. Nothing can be chosen there:
    it gives no pair."""
    return _given(params, 1 - params["right"] ** params["responses"])


def of_two(params):
    """Only two responses were looked at. Any right one among all K makes a pair with
    any wrong one."""
    p = params["right"]
    return _given(params, 2 * p * (1 - p))


def every_combination(params):
    """All combinations of a right and a wrong response were counted. Asked for is one
    pair for each prompt that has any."""
    K, p = params["responses"], params["right"]
    return _given(params, K * (K - 1) * p * (1 - p))


def tokens_of_a_prompt(params):
    """These are the tokens of one prompt's responses. Prompts without a pair are
    sampled, too, and have to be paid for."""
    right = fresh_pairs(params)
    return {**right, "tokens": params["responses"] * params["length"]}


def tokens_of_the_pair(params):
    """Only the two responses of the pair were paid for. All that was sampled costs."""
    return {**fresh_pairs(params), "tokens": 2 * params["length"]}


FRESH_PAIRS = Exercise(
    id="13.fresh_pairs",
    kind="N",
    points=2,
    level=2,
    minutes=15,
    task="A step of online DPO samples so many responses to each prompt; each is right "
    "with probability right. Where there is a right and a wrong one, they make one "
    "pair. Write fresh_pairs(params): a dictionary with the expected number of pairs, "
    "and the tokens that are generated in the step for each of them.",
    solution={"fresh_pairs": fresh_pairs},
    check=agrees("fresh_pairs", all_params(steps)),
    params=steps,
    mutants={
        "fresh_pairs": (
            all_right_counted,
            all_wrong_counted,
            of_two,
            every_combination,
            tokens_of_a_prompt,
            tokens_of_the_pair,
        )
    },
    hints=(
        "Which prompts give no pair at all? There are two kinds.",
        "The probability that all K are right is right^K; that all are wrong, "
        "(1 - right)^K.",
        "pairs = P (1 - p^K - (1 - p)^K); tokens = P K length / pairs.",
    ),
)
