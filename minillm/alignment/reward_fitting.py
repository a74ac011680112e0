r"""The head alone, exactly: what can be judged with what the trunk knows already.

A trunk that stays as it is reads each pair once. What is left is logistic regression on
the differences d of features, chosen minus rejected, each scaled to size 1:

.. math:: \min_w \; \tfrac{1}{N} \sum_n \ln(1 + e^{-w \cdot d_n}) + \lambda |w|^2

This is convex and solved by Newton's method,

.. math:: w \leftarrow w - H^{-1} g, \qquad
          H = \tfrac{1}{N} \sum_n p_n (1 - p_n) d_n d_n^T + 2 \lambda I

with no learning rate, no order and no luck. Training the trunk as well could do better,
given enough labels; with some thousands, each of them one noisy bit, it mostly learns
the noise.

Source: McCullagh and Nelder 1989, section 2.5, for logistic regression by Newton steps.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from minillm.alignment.choices import bradley_terry_loss
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.reward_pairs import Pair, pad_right
from minillm.errors import require, require_positive

STEPS = 20  # the error squares itself with each: fewer are needed


@torch.no_grad()
def fit_head(
    model: RewardModel,
    pairs: Sequence[Pair],
    decay: float = 1e-4,
    B: int = 64,
    progress: bool = False,
) -> float:
    """Fit the head of a reward model to choices, in place.

    Args:
        model: its head is set, and its zero, so that these responses have mean 0.
        pairs: as ``encode_pairs`` makes them.
        decay: lambda, which keeps weights finite where nobody disagrees.
        B: pairs at a time.
        progress: show a bar.

    Returns:
        the loss that is left, in nats per pair, without the penalty.

    Raises:
        ValueError: no pairs, a decay that is not positive.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> pairs = [Pair([1, 2, i], [1, 3, i]) for i in range(32)]
    >>> fit_head(model, pairs) < 0.1
    True
    """
    require_positive(decay=decay)
    require(len(pairs) > 0, "pairs", 0, "at least 1", "ask an annotator first")
    return fit_features(model, *read_features(model, pairs, B, progress), decay)


@torch.no_grad()
def fit_features(
    model: RewardModel,
    chosen: Float[Tensor, "N F"],
    rejected: Float[Tensor, "N F"],
    decay: float = 1e-4,
) -> float:
    """As ``fit_head``, to features that were read before: another head costs nothing.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> fit_features(model, torch.eye(16), -torch.eye(16)) < 0.1
    True
    """
    d = (chosen - rejected).double()
    scale = d.square().mean(dim=0).sqrt().clamp(min=1e-9)
    d = d / scale
    w = d.new_zeros(d.shape[1])
    for _ in range(STEPS):
        p = (d @ w).sigmoid()
        gradient = -((1 - p) @ d) / len(d) + 2 * decay * w
        curvature = d.T @ (d * (p * (1 - p))[:, None]) / len(d)
        w -= torch.linalg.solve(curvature + 2 * decay * torch.eye(len(w)), gradient)
    model.head.copy_(w / scale)
    model.zero.zero_().add_(torch.cat([chosen, rejected]).mean(dim=0) @ model.head)
    return bradley_terry_loss(d @ w, d.new_zeros(len(d))).item()


@torch.no_grad()
def read_features(
    model: RewardModel, pairs: Sequence[Pair], B: int, progress: bool
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N F"]]:
    """The features of both sides, in evaluation mode.

    >>> from minillm.model import GPT, GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> chosen, rejected = read_features(model, [Pair([1, 2], [1, 3])], 1, False)
    >>> chosen.shape
    torch.Size([1, 16])
    """
    was_training, parts = model.training, []
    model.eval()
    places = range(0, len(pairs), B)
    for first in tqdm(places, "reading", disable=not progress, leave=False):
        batch = pairs[first : first + B]
        rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        parts.append(model.features(*pad_right(rows)).chunk(2))
    model.train(was_training)
    chosen, rejected = zip(*parts, strict=True)
    return torch.cat(chosen), torch.cat(rejected)
