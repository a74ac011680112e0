"""Chapter 01: one surprise stated as perplexity and as bits per byte."""

import math

import torch

from minillm.evaluation import bits_per_byte, perplexity
from minillm.school.checks.exercise import Exercise
from minillm.school.checks.tools import agrees, all_of


def corpus_perplexity(nats, n_tokens):
    """The perplexity of several documents together."""
    return perplexity(sum(nats), sum(n_tokens))


def surprises(seed: int) -> dict:
    """Nats and tokens of single texts, and the same numbers as nats and bytes."""
    rng = torch.Generator().manual_seed(seed)
    draws = torch.rand(3, generator=rng).tolist()
    return {
        f"text {i}": (round(9 + 20 * draw, 3), 5 + 4 * i)
        for i, draw in enumerate(draws)
    }


def corpora(seed: int) -> dict:
    """Documents of unequal length, the short ones harder."""
    rng = torch.Generator().manual_seed(seed)
    easy, hard = (1 + torch.rand(2, generator=rng)).tolist()
    return {
        "two documents": ([3 * hard, 20 * easy / 2], [3, 20]),
        "three documents": ([4 * hard, 9 * easy, 30 * easy / 3], [2, 9, 30]),
        "one document": ([5 * hard], [5]),
    }


def not_divided(nats, n_tokens):
    """This is e to the sum, which grows with the text. Divide by the tokens first."""
    return math.exp(nats)


def two_to_the_nats(nats, n_tokens):
    """2 to the loss is the perplexity of a loss in bits. These are nats: use e."""
    return 2 ** (nats / n_tokens)


def minus_lost(nats, n_tokens):
    """This is the typical probability of a token, the inverse of the perplexity. The
    nats are positive surprises: no minus."""
    return math.exp(-nats / n_tokens)


def loss_itself(nats, n_tokens):
    """This is the loss, in nats a token. Perplexity is e to it."""
    return nats / n_tokens


def mean_of_perplexities(nats, n_tokens):
    """Perplexities were averaged, so one hard document outweighs all others. Average
    the surprise over all tokens first, and take the exponential last."""
    each = [perplexity(a, n) for a, n in zip(nats, n_tokens, strict=True)]
    return sum(each) / len(each)


def mean_of_losses(nats, n_tokens):
    """Each document weighs the same, whatever its length. Sum the nats, sum the
    tokens, then divide."""
    each = [a / n for a, n in zip(nats, n_tokens, strict=True)]
    return math.exp(sum(each) / len(each))


def still_nats(nats, n_bytes):
    """These are nats for each byte. A bit is ln 2 nats: divide by ln 2."""
    return nats / n_bytes


def times_ln_2(nats, n_bytes):
    """A bit is less than a nat, so there are more bits than nats: divide by ln 2
    instead of multiplying."""
    return nats * math.log(2) / n_bytes


PERPLEXITY = Exercise(
    id="01.perplexity",
    kind="I",
    points=3,
    level=1,
    minutes=15,
    task="Write perplexity(nats, n_tokens) and bits_per_byte(nats, n_bytes) of a text, "
    "given the sum of its surprise; and corpus_perplexity(nats, n_tokens) of a corpus, "
    "given one number for each document in two lists.",
    solution={
        "perplexity": perplexity,
        "corpus_perplexity": corpus_perplexity,
        "bits_per_byte": bits_per_byte,
    },
    check=all_of(
        agrees("perplexity", surprises),
        agrees("corpus_perplexity", corpora),
        agrees("bits_per_byte", surprises),
    ),
    mutants={
        "perplexity": (not_divided, two_to_the_nats, minus_lost, loss_itself),
        "corpus_perplexity": (mean_of_perplexities, mean_of_losses),
        "bits_per_byte": (still_nats, times_ln_2),
    },
    hints=(
        "A die with k sides has a perplexity of k. How many nats is one throw?",
        "First the mean surprise of a token, over everything; then one exponential. "
        "For bits: how many nats are there in one bit?",
        "math.exp(nats / n_tokens); math.exp(sum(nats) / sum(n_tokens)); "
        "nats / math.log(2) / n_bytes",
    ),
)
