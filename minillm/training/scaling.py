r"""Scaling laws: what a model of N parameters costs on D tokens, and how good it gets.

A weight that multiplies costs a token one multiplication and one addition forward, and
twice that backward, once for the gradient of its input and once for its own. So

.. math:: C \approx 6 N D

which leaves out attention's own products (``attention_share``: little, while the
context is short beside the width). What the C operations buy is an empirical law,

.. math:: L(N, D) = E + A N^{-\alpha} + B D^{-\beta}

in nats per token: E is the entropy of text, which no model gets below; the second term
is what a finite model cannot hold, the third what finite data do not show. Under a
budget C the best N is where both terms fall equally fast, in closed form

.. math:: N = G (C/6)^{\beta/(\alpha+\beta)}, \quad D = (C/6) / N, \quad
          G = (\alpha A / \beta B)^{1/(\alpha+\beta)}

N and D are plain counts, not billions. The printed constants of the first paper are
rounded, and they miss its own rule of 20 tokens a parameter: at its largest budget they
ask for 93. The refit comes to 18 there, as approaches 1 and 2 (``scaling_curves``) do.

Sources: Kaplan et al. 2020 (arXiv 2001.08361); Hoffmann et al. 2022 (2203.15556),
section 3.3 and appendix D; Besiroglu et al. 2024 (2404.10102).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.errors import require, require_positive
from minillm.model import GPTConfig, flops_per_token

Numbers = float | Float[Tensor, "..."]


@dataclass(frozen=True)
class ScalingLaw:
    """The constants of L(N, D) = E + A / N^alpha + B / D^beta, in nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float


HOFFMANN = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
BESIROGLU = ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def training_flops(n_params: Numbers, n_tokens: Numbers) -> Numbers:
    """C = 6 N D, the operations of a training run.

    Args:
        n_params: N, without the embedding table (``non_embedding``).
        n_tokens: D, tokens read.

    Raises:
        ValueError: a count that is not above 0.

    >>> training_flops(13e9, 260e9)  # what 20 tokens a parameter cost 13B
    2.028e+22
    """
    _require_counts(n_params=n_params, n_tokens=n_tokens)
    return 6 * n_params * n_tokens


def attention_share(config: GPTConfig, T: int) -> float:
    r"""The share of all operations that 6 N D misses: scores and averages over keys.

    .. math:: \frac{4 L C S}{2 N + 4 L C S}, \quad S = (T + 1) / 2

    >>> gpt3 = GPTConfig(50_257, 96, 96, n_embd=12_288, n_hidden=32_768, context=2048)
    >>> round(attention_share(gpt3, 2048), 3)
    0.014
    """
    keys = (T + 1) / 2 if config.causal else T
    forward = flops_per_token(config, T, training=False)
    return 4 * config.n_layer * config.n_embd * keys / forward


def chinchilla_loss(
    n_params: Numbers, n_tokens: Numbers, constants: ScalingLaw = HOFFMANN
) -> Numbers:
    """L(N, D) of Hoffmann et al., equation 10, in nats per token.

    Args:
        n_params: N as a plain count, not in billions.
        n_tokens: D likewise.
        constants: of which fit.

    Raises:
        ValueError: a count that is not above 0.

    >>> round(chinchilla_loss(7e9, 100e9), 3), round(chinchilla_loss(70e9, 10e9), 3)
    (2.214, 2.424)
    """
    _require_counts(n_params=n_params, n_tokens=n_tokens)
    c = constants
    return c.E + c.A / n_params**c.alpha + c.B / n_tokens**c.beta


def compute_optimal(
    flops: float, constants: ScalingLaw = HOFFMANN
) -> tuple[float, float]:
    """The N and D of the least loss with 6 N D = flops; see the head of this module.

    Raises:
        ValueError: no positive budget.

    Source: Hoffmann et al. 2022, equation 4.

    >>> N, D = compute_optimal(5.76e23)
    >>> refit_N, refit_D = compute_optimal(5.76e23, BESIROGLU)
    >>> round(D / N), round(refit_D / refit_N)
    (93, 18)
    """
    require_positive(flops=flops)
    c = constants
    G = (c.alpha * c.A / (c.beta * c.B)) ** (1 / (c.alpha + c.beta))
    N = G * (flops / 6) ** (c.beta / (c.alpha + c.beta))
    return N, flops / 6 / N


def kaplan_loss(n_params: Numbers, n_tokens: Numbers) -> Numbers:
    r"""The older law, which has no E: with enough of both the loss falls to nothing.

    .. math:: L = \left[(N_c / N)^{\alpha_N / \alpha_D} + D_c / D\right]^{\alpha_D}

    Raises:
        ValueError: a count that is not above 0.

    Source: Kaplan et al. 2020, equation 1.5 with the constants of table 2.

    >>> kaplan_loss(1e99, 1e99) < 1e-5 < chinchilla_loss(1e99, 1e99)
    True
    """
    _require_counts(n_params=n_params, n_tokens=n_tokens)
    alpha_N, alpha_D, N_c, D_c = 0.076, 0.103, 6.4e13, 1.8e13
    return ((N_c / n_params) ** (alpha_N / alpha_D) + D_c / n_tokens) ** alpha_D


def kaplan_optimal(flops: float) -> tuple[float, float]:
    """N and D as the older recipe divides a budget: nearly all of it goes into N.

    N = 1.3e9 PF-days^0.73. Runs were not long enough each and their schedules did not
    end with them, and small models were counted without their heads: hence 0.73 where
    Chinchilla finds 0.5.

    Raises:
        ValueError: no positive budget.

    Source: Kaplan et al. 2020, table 6; Pearce & Song 2024 (2406.12907) for the causes.
    Differs from the paper: D = C / 6N, while its table gives D a power of its own.

    >>> N, D = kaplan_optimal(5.76e23)  # Chinchilla's budget
    >>> D / N < 1 < 20
    True
    """
    require_positive(flops=flops)
    N = 1.3e9 * (flops / (1e15 * 24 * 3600)) ** 0.73
    return N, flops / 6 / N


def training_cost(
    flops: float, price: float, peak: float, mfu: float = 0.4
) -> tuple[float, float]:
    """Price a run: hours = flops / (peak * mfu), whatever number of devices share them.

    Args:
        flops: of the run, for instance ``training_flops(N, D)``.
        price: of one accelerator for an hour.
        peak: its operations per second, in the precision used (989e12 for an H100).
        mfu: model FLOPs utilisation, the share of the peak that is reached.

    Returns:
        hours of one accelerator, and the money for them.

    Raises:
        ValueError: a number that is not above 0, a share above 1.

    >>> hours, money = training_cost(training_flops(7e9, 140e9), 2.0, peak=989e12)
    >>> round(hours), round(money)
    (4129, 8257)
    """
    require_positive(flops=flops, price=price, peak=peak, mfu=mfu)
    require(mfu <= 1, "mfu", mfu, "at most 1", "it is a share of the peak, not percent")
    hours = flops / (peak * mfu) / 3600
    return hours, hours * price


def _require_counts(**counts: Numbers) -> None:
    for name, count in counts.items():
        fine = bool((torch.as_tensor(count) > 0).all())
        require(fine, name, count, "above 0", "give plain counts, not billions")
