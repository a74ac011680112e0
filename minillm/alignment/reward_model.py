r"""A reward model: which of two responses do people prefer, as one number for each.

It is a language model without its head for words, and one vector instead, read at the
last real token, the only one that has seen all of the response,

.. math:: r = v \cdot h_{last}

and it is trained on choices: see ``choices``. Only differences are learned, so
rewards have no zero until they are given one. Whether an answer is *right* can hardly
be read at the last token; see ``surprise`` for what helps.

Source: Ouyang et al. 2022 (InstructGPT), section 3.5; Stiennon et al. 2020, section
3.4.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.alignment.surprise import response_mask, surprises
from minillm.errors import require, require_mask
from minillm.model import GPT, GPTConfig


def last_token_index(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Where each row's last real token stands, on whichever side the padding is.

    Not the last column, which may be padding; not the number of real tokens less one,
    which is wrong for padding on the left; and not the place before the first token
    that looks like padding, which may be the end of a turn.

    Args:
        mask: True at real tokens.

    Raises:
        ValueError: a mask of numbers, or a row of nothing but padding.

    >>> last_token_index(torch.tensor([[True, True, False], [False, True, True]]))
    tensor([1, 2])
    """
    require_mask(mask, tuple(mask.shape))
    remedy = "leave out rows that are padding only"
    require(bool(mask.any(dim=1).all()), "mask", mask, "True in each row", remedy)
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, places, -1).amax(dim=1)


class RewardModel(nn.Module):
    r"""A trunk that reads, and one vector that turns what was read into a number.

    Args:
        trunk: a causal language model; it is trained with the vector, so pass a copy
            of one that is needed elsewhere.
        opening: the ids that open a response (``reward_pairs.opening_ids``). If given,
            the reward also hears the words of the response, and how surprised the
            trunk is at each, :math:`s_t` nats:

            .. math:: r = v \cdot h_{last} + \sum_t (u + s_t w) \cdot E[x_t]

            Then the trunk may stay as it is: see ``reward_fitting.fit_head``.

    Raises:
        ValueError: an encoder, whose last token has no special place.

    >>> from minillm.model import GPTConfig
    >>> model = RewardModel(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    >>> model(tokens, mask=tokens > 0).shape
    torch.Size([2])
    """

    def __init__(self, trunk: GPT, opening: Sequence[int] = ()):
        super().__init__()
        trunk.config.require_causal()
        self.trunk = trunk
        C = trunk.config.n_embd
        # Rewards begin near 0 with a deviation near 1 (Stiennon et al. 2020, appendix),
        # and without an opinion on words. A vector and no matrix: Muon would give
        # each of its steps the same length.
        parts = [torch.randn(C) / (C + 1) ** 0.5, torch.zeros(2 * C if opening else 0)]
        self.head = nn.Parameter(torch.cat(parts))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("opening", torch.tensor(opening, dtype=torch.long))

    def features(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B F"]:
        """What the head turns into a number; arguments and errors as for the reward."""
        last = last_token_index(mask)
        left = not mask[:, 0].all()  # on the right a causal model needs no mask
        x = self.trunk.hidden(tokens, mask if left else None)
        read = x[torch.arange(len(x)), last]
        if not len(self.opening):
            return read
        response = response_mask(tokens, mask, self.opening)
        nats = surprises(self.trunk, x, tokens, response)
        words = self.trunk.embed_tokens(tokens) * response[..., None]
        heard = (words * nats[..., None]).sum(dim=1)
        return torch.cat([read, words.sum(dim=1), heard], dim=1)

    def forward(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"]:
        """The reward of each row.

        Args:
            tokens: prompts with their responses, padded on either side.
            mask: True at real tokens.

        Raises:
            ValueError: rows without a real token, beyond the model's context, or in
                which no response is opened where one should be.
        """
        return self.features(tokens, mask) @ self.head - self.zero

    @property
    def config(self) -> GPTConfig:
        """The trunk's."""
        return self.trunk.config

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict as files hold it; see ``GPT.weights``."""
        own = {name: w for name, w in self.state_dict().items() if "." not in name}
        return own | {f"trunk.{name}": w for name, w in self.trunk.weights().items()}

    @torch.no_grad()
    def set_zero(self, rewards: Float[Tensor, " N"]) -> None:
        """Shift all rewards so that those given have mean 0; choices stay as they are.

        Args:
            rewards: what this model gives to responses that are to count as average,
                for instance those written by people (InstructGPT, section 3.5).

        Raises:
            ValueError: no rewards, or such that have no mean.
        """
        mean = rewards.mean()
        remedy = "score some responses first"
        require(bool(mean.isfinite()), "rewards", rewards, "finite, at least 1", remedy)
        self.zero += mean
