r"""Preferences without a reference: ORPO, SimPO and CPO.

The reference costs a second model or a first pass over the data. Who leaves it out must
say in another way what "not too far" means:

    orpo   NLL of the chosen response, as in SFT, and odds in place of probabilities
    simpo  log-probs per token, and a margin that must be reached
    cpo    DPO with a uniform reference, held by the NLL of the chosen response

All three compare what the policy itself finds probable. SimPO and ORPO divide by the
length, because without a reference a sum would prefer the shorter response whatever it
says: each token more costs a nat or two. (In DPO the reference pays the same price, and
it cancels.)

Source: Hong et al., arXiv:2403.07691 (ORPO); Meng et al., arXiv:2405.14734 (SimPO);
Xu et al., arXiv:2401.08417 (CPO).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.dpo import require_rows
from minillm.errors import require, require_positive


def log1mexp(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    r"""log(1 - e^x) for x <= 0, exact at both ends.

    Near 0, 1 - e^x cancels and expm1 does not; far below, e^x is so small that only
    log1p sees it. The formulas change places at -ln 2, where both are good.

    Where x is within rounding of 0 it is taken to be -eps: a probability of exactly 1
    has infinite odds, and their gradient would be NaN.

    Source: Mächler, "Accurately computing log(1 - exp(-|a|))" (2012), equation 7.

    >>> log1mexp(torch.tensor([-1e-6, -50.0]))
    tensor([-1.3816e+01, -1.9287e-22])
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # where() sends a gradient of 0 into the branch not taken; 0 * inf would be NaN, so
    # each branch gets arguments that are good for it.
    one, other = x.where(near, -1.0), x.where(~near, -1.0)
    return torch.where(near, (-torch.expm1(one)).log(), torch.log1p(-other.exp()))


def log_odds_ratio(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    r"""How many times larger the odds of the chosen response are, as a logarithm.

    .. math:: \log \frac{p_w / (1 - p_w)}{p_l / (1 - p_l)}, \qquad
              p = \exp(\tfrac{1}{|y|} \log \pi(y|x))

    Args:
        chosen, rejected: log-probs per token (averaged), so that p is a probability of
            the size of a token's; of a whole response it would be nearly 0, and odds
            nothing else than probabilities.

    Raises:
        ValueError: log-probs above 0, not finite, or not both of one shape (B,).

    Source: Hong et al., equations 4 and 5.

    >>> log_odds_ratio(torch.tensor([0.5]).log(), torch.tensor([0.2]).log())   # ln 4
    tensor([1.3863])
    """
    require_rows(chosen=chosen, rejected=rejected)
    highest = max(chosen.max().item(), rejected.max().item())
    require(highest <= 0, "log-probs", highest, "at most 0", "pass log-probs per token")
    return (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))


def orpo_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    r"""SFT on the chosen response, with a penalty on the odds of the rejected one.

    .. math:: L = -\log p_w - \beta \log \sigma\left(\log \frac{odds_w}{odds_l}\right)

    One stage instead of two: the first term is what fine-tuning does. Without it there
    would be nothing that keeps the text fluent.

    Args:
        chosen, rejected: log-probs per token (averaged over the response).
        beta: weight of the odds ratio, lambda in the paper.

    Raises:
        ValueError: as ``log_odds_ratio``; beta that is not positive.

    Source: Hong et al., equations 6 and 7. Differs from TRL: its first term also counts
    the tokens of the prompt, and is a mean over all tokens of the batch.

    >>> half = torch.tensor([0.5]).log()
    >>> orpo_loss(half, half, beta=1.0)   # 2 ln 2
    tensor([1.3863])
    """
    require_positive(beta=beta)
    return -chosen - beta * F.logsigmoid(log_odds_ratio(chosen, rejected))


def simpo_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    beta: float,
    gamma: float,
) -> Float[Tensor, " B"]:
    r"""The reward is the log-prob per token, and the better one must win by gamma.

    .. math:: L = -\log \sigma\left(\frac{\beta}{|y_w|} \log \pi_w
                  - \frac{\beta}{|y_l|} \log \pi_l - \gamma\right)

    Args:
        chosen, rejected: log-probs per token (averaged over the response).
        beta: scale of the reward; 2 to 10, since it multiplies means and not sums.
        gamma: the margin, in units of the reward. The authors tune gamma / beta.

    Raises:
        ValueError: beta that is not positive, a gamma below 0, log-probs that are not
            finite, or not both of one shape (B,).

    Source: Meng et al., equation 6.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), beta=2.0, gamma=1.0)
    tensor([0.3133])
    """
    require_positive(beta=beta)
    require(gamma >= 0, "gamma", gamma, "at least 0", "0 has no margin")
    require_rows(chosen=chosen, rejected=rejected)
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def cpo_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    beta: float,
    alpha: float = 1.0,
    chosen_lengths: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    r"""DPO with a uniform reference, which cancels, and the NLL of the chosen response.

    .. math:: L = -\log \sigma(\beta (\log \pi_w - \log \pi_l)) - \alpha \log \pi_w

    The first term alone lets both log-probs fall; the second holds the chosen one.

    Args:
        chosen, rejected: log-probs in nats, summed over the responses' tokens.
        beta: scale of the margin.
        alpha: weight of the NLL; 0 leaves it out, and nothing then holds the text.
        chosen_lengths: tokens of the chosen responses. Given, the NLL is divided by
            their mean, so that its mean over the batch is a mean over tokens.

    Raises:
        ValueError: beta that is not positive, alpha below 0, log-probs that are not
            finite, or not all of one shape (B,), a response without tokens.

    Source: Xu et al., section 3. Differs from TRL: its NLL is the mean over all
    chosen tokens of the batch; pass ``chosen_lengths`` for that reading.

    >>> pair = torch.tensor([-3.0]), torch.tensor([-3.0])
    >>> cpo_loss(*pair, beta=0.1), cpo_loss(*pair, beta=0.1, alpha=0.0)   # ln 2 and 3
    (tensor([3.6931]), tensor([0.6931]))
    """
    require_positive(beta=beta)
    require(alpha >= 0, "alpha", alpha, "at least 0", "0 leaves the NLL out")
    require_rows(chosen=chosen, rejected=rejected)
    nll = -chosen
    if chosen_lengths is not None:
        require_rows(chosen=chosen, chosen_lengths=chosen_lengths)
        shortest, need = chosen_lengths.min().item(), "at least 1 token"
        require(shortest >= 1, "chosen_lengths", shortest, need, "drop empty responses")
        nll = nll / chosen_lengths.to(chosen.dtype).mean()
    return -F.logsigmoid(beta * (chosen - rejected)) + alpha * nll
