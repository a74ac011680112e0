r"""Loss scaling: how float16 trains although most gradients are too small for it.

float16 has no number between 0 and 6e-8, and gradients of large models lie there. So
the loss is multiplied by S before the backward pass, all gradients with it, and they
are divided by S again, in float32, before anything looks at them: first unscale, then
clip, then step. S is found by trying:

    some gradient is inf or nan   skip this step; S becomes ``backoff`` S
    ``interval`` good steps       S becomes ``growth`` S
      in a row

bfloat16 has float32's exponents and needs none of this (``number_formats``).

Source: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2; torch.amp.GradScaler.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import require, require_count, require_positive
from minillm.training.optimizers import clip_gradients


@dataclass(frozen=True)
class LossScale:
    """The factor on the loss, and what decides when it changes.

    Args:
        scale: S.
        growth: its factor after ``interval`` good steps.
        backoff: its factor after a step that overflowed.
        interval: good steps in a row.
        good: how many of them there have been.

    Raises:
        ValueError: a growth not above 1, a backoff not between 0 and 1.

    >>> LossScale(8.0, interval=1).after(True).scale, LossScale(8.0).after(False).scale
    (16.0, 4.0)
    """

    scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good: int = 0

    def __post_init__(self) -> None:
        require_positive(scale=self.scale)
        require_count(interval=self.interval)
        require(self.growth > 1, "growth", self.growth, "above 1", "2 doubles it")
        inside = 0 < self.backoff < 1
        require(inside, "backoff", self.backoff, "between 0 and 1", "0.5 halves it")

    def after(self, finite: bool) -> "LossScale":
        """The state after a step whose gradients were all finite, or were not."""
        if not finite:
            # The smallest normal float32: a scale of 0 would be no scale.
            least = torch.finfo(torch.float32).tiny
            return replace(self, scale=max(self._by(self.backoff), least), good=0)
        if self.good + 1 < self.interval:
            return replace(self, good=self.good + 1)
        grown = self._by(self.growth)
        return replace(self, scale=grown if grown < torch.inf else self.scale, good=0)

    def _by(self, factor: float) -> float:
        """Rounded to float32, in which S multiplies the loss."""
        return torch.tensor(self.scale * factor, dtype=torch.float32).item()


@torch.no_grad()
def unscale(parameters: Iterable[nn.Parameter], scale: float) -> bool:
    """Divide all gradients by the scale, in place; were they all finite?

    >>> w = nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([8.0, torch.inf])
    >>> unscale([w], 4.0), w.grad[0].item()
    (False, 2.0)
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    for gradient in gradients:
        gradient.mul_(1 / scale)
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def scaled_step(
    loss: Float[Tensor, ""],
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    state: LossScale,
    clip: float = 1.0,
) -> LossScale:
    """One step with a scaled loss: backward, unscale, clip, step unless it overflowed.

    Args:
        loss: unscaled.
        parameters: of the optimizer; float32, for float16 weights would not see small
            updates at all.
        optimizer: left alone, moments included, if a gradient overflowed.
        state: from the step before.
        clip: largest norm of the unscaled gradient.

    Returns:
        the state for the next step.

    >>> w = nn.Parameter(torch.tensor([3.0]))
    >>> state = scaled_step(w.sum(), [w], torch.optim.SGD([w], lr=1.0), LossScale())
    >>> w.item(), state.good
    (2.0, 1)
    """
    optimizer.zero_grad()
    (loss * state.scale).backward()
    finite = unscale(parameters, state.scale)
    if finite:
        clip_gradients(parameters, clip)
        optimizer.step()
    return state.after(finite)
