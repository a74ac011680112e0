"""Training in its shortest form: any loss, any model, a rate that follows a plan.

For experiments of seconds. What long runs need besides (checkpoints, several processes,
a bar, Ctrl-C) has ``trainer``.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from minillm.training.optimizers import build_optimizers, clip_gradients
from minillm.training.schedules import SCHEDULES
from minillm.training.settings import TrainConfig


def minimise(
    model: nn.Module, loss: Callable[[int], Float[Tensor, ""]], config: TrainConfig
) -> list[float]:
    """Train with any objective: ``loss(step)`` computes it on that step's batch.

    Returns:
        the loss of each step.

    >>> import torch
    >>> from minillm.model import GPT, GPTConfig
    >>> from minillm.training.fillin import scored_loss
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> tokens = torch.arange(32)[None]
    >>> targets = tokens.roll(-1, 1)
    >>> told = minimise(
    ...     model, lambda step: scored_loss(model, tokens, targets), TrainConfig(20)
    ... )
    >>> told[-1] < told[0]
    True
    """
    rates = (config.lr, config.matrix_lr, config.betas, config.weight_decay)
    optimizers, losses = build_optimizers(model, config.optimizer, *rates), []
    for step in range(config.steps):
        model.zero_grad()
        value = loss(step)
        value.backward()
        clip_gradients(model.parameters(), config.clip)
        plan = SCHEDULES[config.schedule]
        factor = plan(step, config.steps, config.warmup, config.floor)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
        losses.append(value.item())
    return losses
