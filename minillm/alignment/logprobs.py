r"""How probable was what was said? The one number that all of alignment is made of.

.. math:: \log \pi(y \mid x) = \sum_{t \in y} \log \pi(y_t \mid x, y_{<t})

Three models give this number for the same tokens, and each has its own use:

- the **current** policy is being trained. Its log-probs have a gradient.
- the **old** policy drew the tokens: the same model, before the updates that use them.
  Its log-probs are stored with the rollout and never computed again. In the ratio
  current / old they correct for having sampled from another distribution.
- the **reference** is frozen: the model before alignment. Its log-probs say how far the
  policy has moved from it, in KL penalties and in DPO. It is never part of the ratio.

At the first update of a rollout, current and old are equal: the ratio is 1, and its
gradient is not zero. Old log-probs computed again after an update would make it 1 for
ever; those of the reference would count distance as if it were luck of the draw.

All are scored by the distribution that was sampled from. A token drawn at temperature
0.7 was drawn by ``softmax(logits / 0.7)``; scored at temperature 1, the ratio is not 1
even before the first update. So ``scored_logprobs`` asks ``sampling_logprobs``, as
``generate`` does. With top-k, top-p and min-p a token may fall out of what is kept as
soon as weights change, or for the reference: -inf then is right, and no KL to be had.
Training samples with a temperature at most; truncation is for answers.

Differs from TRL: it scores with the temperature and without the truncation.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require, require_mask
from minillm.evaluation.perplexity import token_logprobs
from minillm.model import GPT, Sampling, sampling_logprobs
from minillm.model.layers import at_least_float32

PLAIN = Sampling()  # the model's own distribution


def scored_logprobs(
    logits: Float[Tensor, "B T V"],
    tokens: Int[Tensor, "B T"],
    sampling: Sampling = PLAIN,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T-1"]:
    """The log-probability of each token but the first, as ``sampling`` draws it.

    Args:
        logits: position t scores the token at t + 1; all T positions.
        tokens: the sequences that the logits were computed from.
        sampling: the rules by which the tokens were drawn.
        mask: True at real tokens; only a repetition penalty asks.

    Returns:
        in float32 at least; -inf for a token that the rules leave no chance.

    Raises:
        ValueError: shapes that do not belong together, or rows of a single token.

    >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    >>> sampling = Sampling(temperature=0.5)
    >>> scored_logprobs(logits, torch.tensor([[0, 1]]), sampling).exp()  # sigmoid(2)
    tensor([[0.8808]])
    """
    require_mask(mask, tuple(tokens.shape))
    logits = at_least_float32(logits)
    if sampling != PLAIN:
        # unbind and not logits[:, t]: the gradient of T slices would be T tensors B T V
        steps = [
            sampling_logprobs(now, sampling, tokens[:, :t], _until(mask, t))
            for t, now in enumerate(logits.unbind(1), 1)
        ]
        logits = torch.stack(steps, dim=1)  # log-probs, which log_softmax leaves alone
    return token_logprobs(logits, tokens)


def _until(mask: Tensor | None, t: int) -> Tensor | None:
    return None if mask is None else mask[:, :t]


def model_logprobs(
    model: GPT,
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None = None,
    sampling: Sampling = PLAIN,
) -> Float[Tensor, "B T-1"]:
    """What a model says to each token but the first, given those before it.

    It has a gradient unless the caller forbids it, and leaves the model in its mode.

    Args:
        model: current, old or reference.
        tokens: prompts with their responses, padded on either side.
        mask: True at real tokens; needed for padding on the left.
        sampling: the rules by which the tokens were drawn.

    Raises:
        ValueError: rows longer than the model's context or of a single token, a mask of
            another shape.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> model_logprobs(model, torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 2])
    """
    return scored_logprobs(model(tokens, mask), tokens, sampling, mask)


def sequence_logprobs(
    logits: Float[Tensor, "B T V"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    average: bool = False,
) -> Float[Tensor, " B"]:
    r"""The log-probability of each row's response.

    .. math:: \log \pi(y \mid x) = \sum_t m_t \log \pi(x_t \mid x_{<t})

    Args:
        logits: position t scores the token at t + 1; all T positions.
        tokens: prompts with their responses.
        mask: True at the response: neither prompt nor padding, never the first token.
        average: per token of the response, as SimPO, ORPO and TRL's IPO want it; DPO
            takes the sum.

    Raises:
        ValueError: shapes that do not belong together, a mask of numbers, a response at
            the first position, or a mean over an empty one. (The sum over it is 0: to
            say nothing is certain if nothing can be said.)

    Source: Rafailov et al. 2023 (DPO), equation 7, for the sum; Meng et al. 2024
    (SimPO), equation 3, for the mean.

    >>> tokens = torch.tensor([[0, 1, 2], [3, 1, 0]])
    >>> mask = torch.tensor([[False, True, True], [False, True, False]])
    >>> sequence_logprobs(torch.zeros(2, 3, 4), tokens, mask).exp()  # 1/16 and 1/4
    tensor([0.0625, 0.2500])
    """
    logprobs = scored_logprobs(logits, tokens)
    require(mask is not None, "mask", mask, "given", "say where the response is")
    require_mask(mask, tuple(tokens.shape))
    remedy = "mask the prompt; nothing predicts the first token"
    require(not mask[:, 0].any(), "mask[:, 0]", mask[:, 0], "False", remedy)
    chosen = mask[:, 1:]
    # where and not a product: padding may score -inf, and 0 times that is NaN
    total, n = torch.where(chosen, logprobs, 0.0).sum(dim=1), chosen.sum(dim=1)
    if not average:
        return total
    shortest = int(n.min())
    remedy = "drop rows without a response, or take the sum"
    require(shortest > 0, "the shortest response", shortest, "at least 1 token", remedy)
    return total / n
