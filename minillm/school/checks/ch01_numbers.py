"""Chapter 01: two numbers that can be derived before anything is trained."""

import math
import random

from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees, all_params


def noisy_corpus(params):
    """The entropy of a token that is right, or replaced by a draw from all tokens."""
    noise, V = params["noise"], params["vocab_size"]
    wrong = noise / V  # each wrong token; the right one may be drawn as well
    right = 1 - noise + wrong
    return -right * math.log(right) - (V - 1) * wrong * math.log(wrong)


def noises(rng: random.Random) -> dict:
    """Some noise, and a vocabulary that is small enough for every term to show."""
    return {"noise": rng.randint(3, 25) / 100, "vocab_size": rng.randint(6, 40)}


def outvoted(params):
    """Noise is not outvoted: a model that never expects it pays without limit when it
    comes. The best model gives each token the probability that it has."""
    return -math.log(1 - params["noise"])


def noise_announced(params):
    """This would be right if somebody announced which tokens are noise. The model must
    also pay for not knowing whether."""
    return params["noise"] * math.log(params["vocab_size"])


def coin_only(params):
    """This is the surprise of whether there is noise. Which token it becomes costs
    something, too."""
    e = params["noise"]
    return -e * math.log(e) - (1 - e) * math.log(1 - e)


def noise_is_never_right(params):
    """The draw is from all tokens, so it hits the right one in 1 of V cases. The right
    token's probability is 1 - noise + noise / V."""
    return coin_only(params) + noise_announced(params)


def in_bits(params):
    """These are bits. A loss is in nats: use the natural logarithm."""
    return noisy_corpus(params) / math.log(2)


NOISY_CORPUS = Exercise(
    id="01.noisy_corpus",
    kind="N",
    points=2,
    level=2,
    minutes=15,
    task="A text is fully predictable, but each token was replaced, with probability "
    "noise, by a draw from all vocab_size tokens, the right one included. Write "
    "noisy_corpus(params): the lowest loss that a model can reach, in nats a token.",
    solution={"noisy_corpus": noisy_corpus},
    check=agrees("noisy_corpus", all_params(noises)),
    params=noises,
    mutants={
        "noisy_corpus": (
            outvoted,
            noise_announced,
            coin_only,
            noise_is_never_right,
            in_bits,
        )
    },
    hints=(
        "No model beats the entropy of what it predicts. Which tokens can come, each "
        "with what probability?",
        "There are two kinds: the right token, and the others, which are all alike. "
        "Do not forget that noise may draw the right token.",
        "wrong = noise / V; right = 1 - noise + wrong; then -right ln right - (V - 1) "
        "wrong ln wrong.",
    ),
)


def stage_costs(params):
    """Dollars of each stage: 6 flops a parameter and token, 2 of them forward."""
    examples = params["sft_examples"] * params["sft_epochs"]
    tokens = params["tokens_per_example"]
    flops = {
        "pretraining": 6 * params["pretraining_tokens"],
        "sft": 6 * examples * tokens,
        "dpo": (6 + 2) * 2 * params["pairs"] * tokens,
    }
    speed = params["flops_per_second"] * params["utilisation"]
    per_flop = params["dollars_per_hour"] / 3600 / speed
    return {stage: n * params["n_params"] * per_flop for stage, n in flops.items()}


def budgets(rng: random.Random) -> dict:
    """A model, its three stages, and what a GPU does and costs."""
    return {
        "n_params": rng.randint(1, 70) * 10**9,
        "pretraining_tokens": rng.randint(1, 15) * 10**12,
        "sft_examples": rng.randint(10, 900) * 1000,
        "sft_epochs": rng.randint(2, 4),
        "pairs": rng.randint(20, 300) * 1000,
        "tokens_per_example": rng.randint(200, 1500),
        "flops_per_second": rng.randint(300, 990) * 10**12,
        "utilisation": rng.randint(30, 55) / 100,
        "dollars_per_hour": rng.randint(150, 400) / 100,
    }


def forward_only(params):
    """2 flops a parameter and token are the forward pass. The backward pass takes two
    times as much: 6 in all."""
    costs = stage_costs(params)
    dpo = costs["dpo"] * 4 / 8
    return {**{k: v / 3 for k, v in costs.items()}, "dpo": dpo}


def peak_speed(params):
    """No GPU reaches its peak. Multiply its speed by the utilisation."""
    return {k: v * params["utilisation"] for k, v in stage_costs(params).items()}


def price_for_each_second(params):
    """The price is for an hour, and the time was counted in seconds: divide by 3600."""
    return {k: v * 3600 for k, v in stage_costs(params).items()}


def one_epoch(params):
    """Each epoch costs the same again: multiply by the epochs of fine-tuning."""
    return stage_costs({**params, "sft_epochs": 1})


def reference_forgotten(params):
    """DPO also asks the frozen reference, forward only: 2 flops more for each parameter
    and token, 8 in all."""
    costs = stage_costs(params)
    return {**costs, "dpo": costs["dpo"] * 6 / 8}


def one_of_a_pair(params):
    """A pair is two sequences, the chosen and the rejected one."""
    costs = stage_costs(params)
    return {**costs, "dpo": costs["dpo"] / 2}


STAGE_COSTS = Exercise(
    id="01.stage_costs",
    kind="N",
    points=2,
    level=2,
    minutes=15,
    task="Write stage_costs(params): the dollars of pretraining, sft and dpo (one pass "
    "over the pairs, each two sequences of tokens_per_example) as a dictionary. "
    "Training takes 6 flops a parameter and token, 2 of them forward.",
    solution={"stage_costs": stage_costs},
    check=agrees("stage_costs", all_params(budgets)),
    params=budgets,
    mutants={
        "stage_costs": (
            forward_only,
            peak_speed,
            price_for_each_second,
            one_epoch,
            reference_forgotten,
            one_of_a_pair,
        )
    },
    hints=(
        "How many tokens does each stage push through the model, and does every model "
        "that it uses learn?",
        "flops = 6 N tokens; seconds = flops / (peak * utilisation); hours; dollars. "
        "In DPO the reference only goes forward.",
        "tokens: pretraining_tokens; examples * epochs * length; 2 * pairs * length. "
        "Factors: 6, 6 and 6 + 2.",
    ),
)
