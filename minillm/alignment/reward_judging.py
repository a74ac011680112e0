r"""How good is a reward model? Asked of the one who knows.

Of pairs that training never held:

- how often does the model agree with the **annotator**? Nobody can agree more often
  than the annotator's noise permits,

  .. math:: ceiling = E[\max(p, 1 - p)], \qquad p = P(\text{annotator chooses } a)

- how often does it agree with the **truth**? That may be above the ceiling: noise that
  favours nobody averages out. What favours somebody (length, taste) does not.
- is its **probability** the annotator's, and is it as often right as it is sure?

Only the first can be measured where people annotate, and without the ceiling. So 75 %
on real data may be all that there is, or a third of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.choices import pair_accuracy, require_pairs
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Pair, Verdict, encode_pairs, score_pairs
from minillm.data.templates import CHATML, Template
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count, require_one_of
from minillm.evaluation.asking import calibration_error
from minillm.world.preferences import Annotator, Preference, true_reward

RULES = ("mean", "worst", "cautious")


@dataclass(frozen=True)
class Judgement:
    """What a reward model is worth.

    Args:
        agreement: part of the annotator's verdicts that the model shares.
        ceiling: the largest agreement that anybody could expect.
        accuracy: part of the pairs that it orders as the true reward does; pairs of
            equal true reward are left out.
        probability_error: mean distance of its probability from the annotator's.
        calibration_error: of how sure it is, against the verdicts.
    """

    agreement: float
    ceiling: float
    accuracy: float
    probability_error: float
    calibration_error: float


def evaluate_reward_model(
    model: RewardModel,
    tokenizer: Tokenizer,
    verdicts: Sequence[Verdict],
    annotator: Annotator,
    B: int = 64,
    template: Template = CHATML,
) -> Judgement:
    """Compare a reward model with an annotator and with the truth.

    Args:
        model: a trained one; its mode is as before afterwards.
        tokenizer: its own.
        verdicts: of the annotator, on pairs that it was not trained on.
        annotator: who gave them.
        B: pairs at a time.
        template: the marks.

    Raises:
        ValueError: no verdicts, or none on responses of unequal worth.

    >>> from minillm.model import GPT, GPTConfig
    >>> from minillm.world import World
    >>> from minillm.world.instructions import preferences
    >>> tokenizer, annotator = Tokenizer(merges=()), Annotator()
    >>> model = RewardModel(GPT(GPTConfig(tokenizer.vocab_size, 1, 2, n_embd=16)))
    >>> verdicts = list(preferences(World().lore, 20, annotator))
    >>> evaluate_reward_model(model, tokenizer, verdicts, annotator).ceiling > 0.7
    True
    """
    require_count(B=B)
    n = len(verdicts)
    require(n > 0, "verdicts", n, "at least 1", "ask an annotator first")
    chosen, rejected = _score_all(model, encode_pairs(tokenizer, verdicts, template), B)
    seen = [preference for _, preference in verdicts]
    p = chosen.new_tensor([_probability(annotator, one) for one in seen])
    confidence, right = choice_confidence(chosen, rejected)
    return Judgement(
        agreement=pair_accuracy(chosen, rejected),
        ceiling=torch.maximum(p, 1 - p).mean().item(),
        accuracy=_true_accuracy(chosen - rejected, [true_gain(one) for one in seen]),
        probability_error=((chosen - rejected).sigmoid() - p).abs().mean().item(),
        calibration_error=calibration_error(confidence, right),
    )


def true_gain(preference: Preference) -> float:
    """By how much the chosen response is truly better; negative if it is worse."""
    question, chosen, rejected = vars(preference).values()
    return true_reward(question, chosen) - true_reward(question, rejected)


def choice_confidence(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]
) -> tuple[list[float], list[bool]]:
    r"""How sure the model was of each choice, and whether it was right.

    .. math:: confidence = \sigma(|r_{chosen} - r_{rejected}|)

    of the response that the *model* prefers: 0.5 to 1. (The probability that it gave to
    the chosen one could not be compared with anything: the chosen one was always
    chosen.) For ``evaluation.asking.reliability`` and ``calibration_error``.

    Raises:
        ValueError: as ``bradley_terry_loss``.

    >>> choice_confidence(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
    ([0.8807..., 0.8807...], [True, False])
    """
    require_pairs(chosen, rejected)
    difference = (chosen - rejected).double()
    return difference.abs().sigmoid().tolist(), (difference > 0).tolist()


def ensemble_reward(
    rewards: Float[Tensor, "M B"], rule: str = "mean", caution: float = 1.0
) -> Float[Tensor, " B"]:
    r"""One reward from M models that were trained with different heads and orders.

    A policy that is trained for long finds what a reward model is wrong about. Models
    that agree where there was data differ elsewhere; so disagreement is a warning:

    .. math:: mean_m\, r_m, \qquad \min_m r_m, \qquad
              mean_m\, r_m - c \sqrt{\tfrac{1}{M} \sum_m (r_m - mean)^2}

    What all have learned from the same annotators they are wrong about together.

    Args:
        rewards: of each model, with a zero that they share (``set_zero``): their own
            are arbitrary, and a minimum would pick the model with the lowest.
        rule: ``"mean"``, ``"worst"`` or ``"cautious"``, in the order above.
        caution: c, for ``"cautious"``.

    Raises:
        ValueError: an unknown rule, no models, a caution below 0.

    Source: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization";
    Eisenstein et al. 2023, "Helping or Herding?". Differs from Coste et al.: they take
    off the variance, and we its root, which has the unit of a reward.

    >>> rewards = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    >>> ensemble_reward(rewards, "worst"), ensemble_reward(rewards, "cautious")
    (tensor([1., 2.]), tensor([1., 2.]))
    """
    require_one_of(RULES, rule=rule)
    M, need, remedy = len(rewards), "of shape (M, B), M at least 1", "stack the models'"
    require(rewards.ndim == 2 and M > 0, "rewards", rewards, need, remedy)
    require(caution >= 0, "caution", caution, "at least 0", "0 is the mean")
    if rule == "worst":
        return rewards.amin(dim=0)
    mean = rewards.mean(dim=0)
    # Over M and not M - 1: one model alone does not disagree with itself.
    spread = rewards.std(dim=0, correction=0)
    return mean - caution * spread if rule == "cautious" else mean


@torch.no_grad()
def _score_all(
    model: RewardModel, pairs: Sequence[Pair], B: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    was_training = model.training
    model.eval()
    try:
        starts = range(0, len(pairs), B)
        parts = [score_pairs(model, pairs[i : i + B]) for i in starts]
    finally:
        model.train(was_training)
    chosen, rejected = (torch.cat(part).double() for part in zip(*parts, strict=True))
    return chosen, rejected


def _probability(annotator: Annotator, preference: Preference) -> float:
    return annotator.probability(*vars(preference).values())


def _true_accuracy(difference: Tensor, gains: Sequence[float]) -> float:
    """As ``pair_accuracy``, of all pairs in which one response is truly better."""
    scored = zip(difference.tolist(), gains, strict=True)
    # sums of the same numbers in another order may differ in their last digit
    agreed = [d * gain for d, gain in scored if abs(gain) > 1e-9]
    remedy = "give more verdicts"
    require(len(agreed) > 0, "unequal pairs", 0, "at least 1", remedy)
    return fmean((a > 0) + (a == 0) / 2 for a in agreed)
