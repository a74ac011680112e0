r"""How surprised is the trunk at each word of a response?

A reward model that reads its number at the last token soon hears how a response sounds,
and hardly whether it is right: what the trunk expected to be said is complete only
above its last layer, and no layer comes after it that could compare this with what was
said. So the comparison is made here, from the trunk's own head for words,

.. math:: s_t = \max(\ln p(x_t \mid x_{<t}), -8)

for each token of the response. A wrong answer to a question that the trunk could
answer stands out by it. So does all else that is unusual; which words are to be judged
by their surprise, and how strictly, is learned: token t counts
:math:`(u + s_t w) \cdot E[x_t]`, where E is its embedding.

What is never learned this way is anything that the trunk itself does not know.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.errors import require
from minillm.model import GPT
from minillm.model.layers import at_least_float32

FLOOR = -8.0  # nats: beyond it no token counts for more, or one would drown all others


def response_mask(
    tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], opening: Int[Tensor, " n"]
) -> Bool[Tensor, "B T"]:
    """True at the real tokens behind the last opening of a turn: the response.

    Args:
        tokens: prompts with their responses, padded on either side.
        mask: True at real tokens.
        opening: the ids that open the assistant's turn, which nobody can type.

    Raises:
        ValueError: a row in which no turn is opened.

    >>> tokens = torch.tensor([[9, 1, 9, 2, 3, 0]])
    >>> response_mask(tokens, tokens > 0, opening=torch.tensor([9]))[0].int()
    tensor([0, 0, 0, 1, 1, 0], dtype=torch.int32)
    """
    n, T = len(opening), tokens.shape[1]
    places = torch.arange(T, device=tokens.device)
    found = torch.zeros_like(mask)
    found[:, n - 1 :] = (tokens.unfold(1, n, 1) == opening).all(-1)  # where it ends
    last = torch.where(found & mask, places, -1).amax(dim=1, keepdim=True)
    remedy = "score prompts with responses, in the template of the opening"
    need = "in each row"
    require(bool((last >= 0).all()), "opening", opening.tolist(), need, remedy)
    return (places > last) & mask


def surprises(
    trunk: GPT,
    hidden: Float[Tensor, "B T C"],
    tokens: Int[Tensor, "B T"],
    response: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """What the trunk thought of each token of the response before it was said, in nats.

    Args:
        trunk: whose head for words is asked.
        hidden: what it read, ``trunk.hidden(tokens, ...)``.
        tokens: the same tokens.
        response: True where the response is, never at the first token.

    Returns:
        log-probs, at least ``FLOOR``; 0 outside the response.

    >>> from minillm.model import GPTConfig
    >>> trunk, tokens = GPT(GPTConfig(8, 1, 2, n_embd=16)), torch.tensor([[1, 2, 3]])
    >>> found = surprises(trunk, trunk.hidden(tokens), tokens, tokens > 1)
    >>> found[0, 0].item(), (found[0, 1:].exp() < 1).all()
    (0.0, tensor(True))
    """
    said, before = tokens[response], hidden[:, :-1][response[:, 1:]]
    # Only where it is asked for: the head is the dearest part of a small model.
    logprobs = at_least_float32(trunk.lm_head(before)).log_softmax(-1)
    nats = logprobs.gather(-1, said[:, None])[:, 0].clamp(min=FLOOR)
    return torch.zeros_like(tokens, dtype=nats.dtype).masked_scatter(response, nats)
