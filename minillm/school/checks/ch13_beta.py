"""Chapter 13: how far does the best policy go, for a given beta?"""

import math
import random

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees, all_params
from minillm.world.closed import optimum


def beta_and_kl(params):
    """The optimum of E[r] - beta KL: its distance from the reference, its reward."""
    best = optimum([*map(math.log, params["ref"])], params["rewards"], params["beta"])
    return {"kl": best.kl, "reward": best.expected_reward}


def worlds(rng: random.Random) -> dict:
    """Four responses, the reference's probabilities, rewards, and a price."""
    odds = [rng.randint(1, 9) for _ in range(4)]
    return {
        "ref": [odd / sum(odds) for odd in odds],
        "rewards": [rng.randint(0, 40) / 10 for _ in range(3)] + [4.5],
        "beta": rng.choice([0.4, 0.6, 0.8, 1.5, 2.5]),
    }


def _described(logp, params) -> dict:
    ref, rewards = params["ref"], params["rewards"]
    p = [math.exp(x) for x in logp]
    kl = sum(q * (x - math.log(r)) for q, x, r in zip(p, logp, ref, strict=True))
    reward = sum(q * r for q, r in zip(p, rewards, strict=True))
    return {"kl": kl, "reward": reward}


def _tilted(params, exponents, ref) -> dict:
    scores = [math.log(r) + e for r, e in zip(ref, exponents, strict=True)]
    log_z = math.log(sum(map(math.exp, scores)))
    return _described([score - log_z for score in scores], params)


def times_beta(params):
    """The reward was multiplied by beta, so a large beta moves the policy far. beta is
    the price of moving: divide."""
    exponents = [r * params["beta"] for r in params["rewards"]]
    return _tilted(params, exponents, params["ref"])


def reference_forgotten(params):
    """This policy is a softmax of the rewards; the reference does not occur in it. The
    optimum is the reference, tilted: multiply by its probabilities."""
    exponents = [r / params["beta"] for r in params["rewards"]]
    return _tilted(params, exponents, [1.0] * len(exponents))


def kl_backwards(params):
    """This is KL(ref || policy). Asked for is the mean over what the policy says."""
    right = beta_and_kl(params)
    exponents = [r / params["beta"] for r in params["rewards"]]
    ref = params["ref"]
    log_z = math.log(sum(p * math.exp(e) for p, e in zip(ref, exponents, strict=True)))
    kl = sum(p * (log_z - e) for p, e in zip(ref, exponents, strict=True))
    return {**right, "kl": kl}


def price_of_kl(params):
    """This is beta times the KL, what the objective subtracts. Asked for is the KL."""
    right = beta_and_kl(params)
    return {**right, "kl": params["beta"] * right["kl"]}


def reward_after_the_price(params):
    """The reward was given less its price, which is the value of the objective. Asked
    for is the expected reward alone."""
    right = beta_and_kl(params)
    return {**right, "reward": right["reward"] - params["beta"] * right["kl"]}


def in_bits(params):
    """This KL is in bits. Use the natural logarithm: nats."""
    right = beta_and_kl(params)
    return {**right, "kl": right["kl"] / math.log(2)}


def greedy(params):
    """This policy always says the best response. That is where beta goes to 0; at this
    beta it pays to say others, too."""
    best = max(range(4), key=lambda i: params["rewards"][i])
    return {"kl": -math.log(params["ref"][best]), "reward": params["rewards"][best]}


BETA_AND_KL = Exercise(
    id="13.beta_and_kl",
    kind="N",
    points=2,
    level=2,
    minutes=15,
    task="Four responses have reference probabilities ref and rewards. Write "
    "beta_and_kl(params): a dictionary with the kl to the reference, in nats, and the "
    "expected reward of the policy that maximises E[r] - beta KL, to which DPO leads.",
    solution={"beta_and_kl": beta_and_kl},
    check=agrees("beta_and_kl", all_params(worlds)),
    params=worlds,
    mutants={
        "beta_and_kl": (
            times_beta,
            reference_forgotten,
            kl_backwards,
            price_of_kl,
            reward_after_the_price,
            in_bits,
            greedy,
        )
    },
    hints=(
        "The best policy has a closed form. Which one, and what has beta to do there?",
        "Tilt: ref times exp(r / beta), divided by the sum. Then two means over that "
        "policy.",
        "p = ref * exp(r / beta) / Z; kl = sum p ln(p / ref); reward = sum p r.",
    ),
)
