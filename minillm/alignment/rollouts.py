r"""Rollouts: what the policy says when asked, and how probable it was to say it.

On-policy training makes its own data. A language model is a policy whose state is the
text so far and whose action is the next token; a rollout is a prompt with the actions
that followed it, up to and including the stop token:

    tokens   pad pad  p   p   p   a   a  stop pad
    real      -   -   x   x   x   x   x   x    -      attention sees these
    actions   -   -   -   -   -   x   x   x    -      losses see these

To stop is an action: whoever leaves it out never teaches when to stop. What stands
behind it was not chosen by anybody and counts nowhere. Prompts are padded on the left,
so that all responses begin in one column.

The log-probs are those of the policy that sampled, by the distribution that was sampled
from. They come from a second pass over the whole rows, as the update will compute them,
so that the first ratio is 1 to the last digits: a cache rounds in other places.

Source: Ziegler et al. 2019, section 2; Ouyang et al. 2022 (InstructGPT), section 3.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.alignment.logprobs import PLAIN, model_logprobs
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_mask
from minillm.model import GPT, Sampling, generate


@dataclass(frozen=True)
class Rollouts:
    """Prompts with sampled responses.

    Args:
        tokens: prompts, padded on the left; responses, padded on the right.
        real: True at tokens that are no padding.
        actions: True at sampled tokens, the stop token included.
        logprobs: of the policy that sampled; entry t belongs to the token at t + 1, and
            is zero where that is no action.
        stop: the token that ends a response, if there is one.

    Raises:
        ValueError: shapes that do not belong together, masks of numbers, actions at the
            first position or at padding.
    """

    tokens: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"]
    actions: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T-1"]
    stop: int | None = None

    def __post_init__(self) -> None:
        B, T = self.tokens.shape
        require_mask(self.real, (B, T))
        require_mask(self.actions, (B, T))
        ok = not self.actions[:, 0].any() and not (self.actions & ~self.real).any()
        need = "True at real tokens only, never at the first position"
        require(ok, "actions", self.actions, need, "mark what was sampled")
        shape, need = tuple(self.logprobs.shape), f"of shape {(B, T - 1)}"
        require(shape == (B, T - 1), "logprobs", shape, need, "one for each but first")

    @property
    def finished(self) -> Bool[Tensor, " B"]:
        """Whether each response stopped by itself; False if it was cut off."""
        if self.stop is None:
            return torch.zeros_like(self.real[:, 0])
        return (self.actions & (self.tokens == self.stop)).any(dim=1)

    def completions(self) -> list[list[int]]:
        """The actions of each row, the stop token included."""
        rows = zip(self.tokens, self.actions, strict=True)
        return [row[acts].tolist() for row, acts in rows]

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """What was said, without the stop token."""
        return [
            tokenizer.decode(id_ for id_ in row if id_ != self.stop)
            for row in self.completions()
        ]


@torch.no_grad()
def sample_rollouts(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop: int | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Let the policy respond to each prompt, and keep how probable that was.

    Dropout is off for both passes; the model's mode is as before afterwards.

    Args:
        model: the policy.
        prompts: B lists of token ids, none empty. For a group of G responses to each,
            repeat each prompt G times.
        max_new_tokens: who has not stopped by then is cut off.
        sampling: how tokens are drawn; a temperature above 0.
        stop: the token that ends a response.
        pad: fills the gaps; masked and never seen.
        generator: source of randomness, for draws that can be repeated.

    Raises:
        ValueError: greedy sampling, and what ``generate`` refuses: no prompts, prompts
            that leave no room for max_new_tokens in the context, unknown ids.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> rollouts = sample_rollouts(model, [[1, 2], [3]], max_new_tokens=4)
    >>> rollouts.actions.sum(dim=1), rollouts.logprobs.shape
    (tensor([4, 4]), torch.Size([2, 5]))
    """
    t, remedy = sampling.temperature, "use generate or respond to look at best answers"
    require(t > 0, "temperature", t, "positive: greedy choices have no odds", remedy)
    made = generate(model, prompts, max_new_tokens, sampling, stop, pad, generator)
    tokens, real = made.tokens, made.mask
    actions = real.clone()
    actions[:, : made.prompt_length] = False
    was_training = model.training
    model.eval()
    try:
        logprobs = model_logprobs(model, tokens, real, sampling)
    finally:
        model.train(was_training)
    # At the very edge of top-p rounding decides, and may decide otherwise in this pass.
    # Such a token has no ratio, so it is no action.
    actions[:, 1:] &= logprobs.isfinite()
    return Rollouts(tokens, real, actions, logprobs.where(actions[:, 1:], 0.0), stop)
