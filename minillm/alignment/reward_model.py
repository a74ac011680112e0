r"""A reward model: which of two responses do people prefer, as one number for each.

Nobody can say how good a response is on a scale, but anybody can say which of two is
better. Bradley and Terry suppose a number behind every choice,

.. math:: P(a \succ b) = \sigma(r_a - r_b), \qquad
          L = -\log \sigma(r_{chosen} - r_{rejected})

and the numbers that make the choices most probable are the reward. It is the logistic
loss on a difference. Only the difference is learned: to add the same to both changes
nothing, so rewards have no zero until they are given one, and a reward of 3 says
nothing by itself. The scale is real: it says how sure the annotators were.

The model is a language model without its head for words, and one vector instead, read
at the last real token, the only one that has seen all of the response. Whether an
answer is *right* can hardly be read there; see ``surprise`` for what helps.

Source: Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), section 3.5 and
equation 1; Stiennon et al. 2020, section 3.4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def bradley_terry_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, ""]:
    r"""Mean surprise in nats at the choices that were made.

    .. math:: L = -\frac{1}{B} \sum \log \sigma(r_{chosen} - r_{rejected} - m)

    Args:
        chosen: rewards of the responses that were preferred.
        rejected: rewards of the others, in the same order.
        margin: by how much the difference should be larger than 0; one number, or one
            for each pair where annotators said how much better the chosen one is.

    Raises:
        ValueError: no pairs, numbers of unequal length, rewards that are no numbers.

    Source: Ouyang et al. 2022, equation 1; Touvron et al. 2023 (Llama 2), equation 2,
    for the margin.

    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([1.0]))   # ln(1 + e^-2)
    tensor(0.1269)
    """
    require_pairs(chosen, rejected)
    # logsigmoid: the log of a sigmoid is -inf at -100 already, and its gradient NaN
    return -F.logsigmoid(chosen - rejected - margin).mean()


def centring_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    r"""A zero for rewards: the mean square of the sum of each pair.

    .. math:: L = \frac{1}{B} \sum (r_{chosen} + r_{rejected})^2

    Added with a small factor (0.01), it keeps the middle of each pair near 0, and the
    differences as they are. The squares of both rewards would pull at the differences.

    Raises:
        ValueError: as ``bradley_terry_loss``.

    Source: Eisenstein et al. 2023, "Helping or Herding?"; TRL calls the factor
    ``center_rewards_coefficient``.

    >>> centring_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, -1.0]))
    tensor(8.)
    """
    require_pairs(chosen, rejected)
    return (chosen + rejected).square().mean()


def pair_accuracy(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> float:
    """The part of the pairs in which the chosen one has the larger reward.

    Equal rewards count one half, as a coin would. So a model that gives the same to all
    has 0.5. Differs from TRL: equal rewards count 0.

    Raises:
        ValueError: as ``bradley_terry_loss``.

    >>> pair_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]))
    0.75
    """
    require_pairs(chosen, rejected)
    right = (chosen > rejected).double() + (chosen == rejected).double() / 2
    return right.mean().item()


def require_pairs(chosen: Tensor, rejected: Tensor) -> None:
    """Require as many rewards of chosen responses as of rejected, and numbers all.

    >>> require_pairs(torch.zeros(2), torch.zeros(1))
    Traceback (most recent call last):
    ValueError: rejected must be of shape (2,), as chosen, got (1,) of torch.float...
    """
    n, need = tuple(chosen.shape), f"of shape {tuple(chosen.shape)}, as chosen"
    same, remedy = chosen.shape == rejected.shape, "give one for each pair"
    require(same, "rejected", rejected, need, remedy)
    require(chosen.numel() > 0, "chosen", n, "at least 1 reward", remedy)
    numbers = not (chosen - rejected).isnan().any()
    remedy = "find the response whose reward is NaN or infinite"
    require(bool(numbers), "rewards", chosen - rejected, "numbers", remedy)
