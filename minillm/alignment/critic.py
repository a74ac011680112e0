r"""The critic: how much reward is still to come?

.. math:: V(x_{\le t}) = w \cdot h_t + b, \qquad h_t \; the \; last \; hidden \; state

A value belongs to the state *before* an action. The entry that stands beside the
log-probability of token t + 1 is therefore computed from the tokens up to t, and sees
neither the action nor what came of it.

Source: Ouyang et al. 2022 (InstructGPT), appendix C.4; Huang et al. 2024, "The N
implementation details of RLHF with PPO", for the head that starts at 0.
"""

import copy

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.model import GPT


class Critic(nn.Module):
    """A language model with a head of one number.

    Args:
        model: where it begins, the policy or a reward model's; it is copied.

    The head starts at 0, so the first advantages are the rewards themselves, and no
    random guess is mistaken for knowledge.

    >>> import torch
    >>> from minillm.model import GPTConfig
    >>> critic = Critic(GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16)))
    >>> critic(torch.tensor([[1, 2, 3]]))
    tensor([[0., 0.]], grad_fn=<...>)
    """

    def __init__(self, model: GPT):
        super().__init__()
        self.body = copy.deepcopy(model)
        self.body.lm_head = None  # no words
        self.head = nn.Linear(model.config.n_embd, 1)
        self.head.to(model.embed_tokens.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T-1"]:
        """Values, aligned with the log-probabilities of the tokens but the first.

        Args:
            tokens: prompts with their responses.
            mask: True at real tokens; needed for padding on the left.
        """
        return self.head(self.body.hidden(tokens, mask)[:, :-1]).squeeze(-1)
