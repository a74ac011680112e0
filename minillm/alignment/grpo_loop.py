"""GRPO as a loop: ask in groups, compare, update.

    rollouts = sample_rollouts(model, prompts, each G times in a row)   rollouts.py
    advantages = group_advantages(rewards.view(P, G))                   groups.py
    loss = grpo_loss(...)                                               grpo.py

The reference is needed only for a KL penalty. There are two places for it, and they
lead to two policies. In the *loss* (k3, as in DeepSeekMath) the gradient is that of
KL(pi_ref || pi). In the *reward* (k1 summed over the response, as in RLOO and PPO) it
is that of KL(pi || pi_ref), whose optimum is pi_ref exp(r / beta) / Z.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.groups import group_advantages
from minillm.alignment.grpo import grpo_loss
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.loop import (
    Reward,
    means,
    minibatches,
    policy_logprobs,
    repeat,
    rewards_of,
    select,
    update,
)
from minillm.alignment.masked import masked_sum
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.alignment.settings import GRPOConfig
from minillm.alignment.surrogate import clip_fraction, masked_log_ratio
from minillm.errors import require
from minillm.model import GPT
from minillm.training import MetricsLog


def grpo(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    config: GRPOConfig,
    stop: int | None = None,
    pad: int = 0,
    ref: GPT | None = None,
    progress: bool = True,
) -> MetricsLog:
    """Train a model on the rewards of its own responses, in place.

    Args:
        model: the policy; it is changed.
        prompts: token ids of each.
        reward: (which prompt each row answers, rollouts) -> the reward of each row.
        config: how.
        stop, pad: as for ``sample_rollouts``.
        ref: frozen, another object than the model; needed if beta is not 0.
        progress: show a bar.

    Returns:
        for each step: mean reward, the part of groups that are all equal, KL to the
        reference (nats per response), entropy, clip fraction, length, gradient norm.

    Raises:
        ValueError: no prompt, beta without a reference, the model as its own reference,
            rewards that are not finite.
        TrainingInterrupted: Ctrl-C; the model keeps what it learned.
    """
    require(len(prompts) > 0, "prompts", prompts, "at least one", "ask something")
    known = config.beta == 0 or (ref is not None and ref is not model)
    remedy = "pass copy.deepcopy(model), made before training"
    require(known, "ref", type(ref).__name__, "another model, as beta > 0", remedy)
    dice = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, betas=(0.9, 0.95), weight_decay=0.0
    )

    def step() -> dict[str, float]:
        asked = torch.randint(len(prompts), (config.prompts,), generator=dice)
        which = asked.repeat_interleave(config.group).tolist()
        rows = [prompts[i] for i in which]
        sizes = (config.max_new_tokens, config.sampling, stop, pad, dice)
        rollouts = sample_rollouts(model, rows, *sizes)
        rewards = rewards_of(reward(which, rollouts), len(rows))
        return {"reward": rewards.mean().item()} | grpo_step(
            model, optimizer, rollouts, rewards, config, ref, dice
        )

    return repeat(step, config.steps, progress)


def grpo_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    rewards: Float[Tensor, " B"],
    config: GRPOConfig,
    ref: GPT | None = None,
    dice: torch.Generator | None = None,
) -> dict[str, float]:
    """All updates from one batch of rollouts; the rows of a group stand together.

    Returns:
        means over the updates, none of them if no group had anything to say; the KL is
        that of the policy that sampled, 0 without a reference.
    """
    mask, c = rollouts.actions[:, 1:], config
    ref_logprobs = _ref_logprobs(ref, rollouts, c)
    kl = masked_sum(rollouts.logprobs - ref_logprobs, mask, dim=1)
    if c.kl == "reward":
        rewards = rewards - c.beta * kl
    groups = rewards.view(-1, c.group)
    advantages = group_advantages(groups, c.normalize).flatten()
    equal = (groups == groups[:, :1]).all(dim=1)
    live = (~equal | (not c.skip_equal)).repeat_interleave(c.group).nonzero()[:, 0]
    seen = []
    for _ in range(c.epochs):
        for rows in minibatches(live, c.minibatch or len(rewards), dice):
            part = (select(rollouts, rows), advantages[rows], ref_logprobs[rows])
            seen.append(_update(model, optimizer, *part, c))
    return means(seen) | {
        "kl": kl.mean().item(),
        "equal_groups": equal.float().mean().item(),
        "length": mask.sum(dim=1).float().mean().item(),
    }


@torch.no_grad()
def _ref_logprobs(ref: GPT | None, rollouts: Rollouts, config: GRPOConfig) -> Tensor:
    """The reference's log-probabilities; the policy's own where there is none."""
    if ref is None:
        return rollouts.logprobs
    return model_logprobs(ref, rollouts.tokens, rollouts.real, config.sampling)


def _update(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantages: Float[Tensor, " B"],
    ref_logprobs: Float[Tensor, "B T-1"],
    config: GRPOConfig,
) -> dict[str, float]:
    """One step of the model."""
    mask, old, c = rollouts.actions[:, 1:], rollouts.logprobs, config
    logprobs, entropy = policy_logprobs(model, rollouts, c.sampling)
    loss = grpo_loss(
        logprobs,
        old,
        advantages,
        mask,
        c.clip,
        c.clip_high,
        c.beta if c.kl == "loss" else 0.0,
        ref_logprobs,
        c.aggregation,
        c.level,
        length=c.max_new_tokens,
    )
    norm = update(loss, [model], optimizer, c.max_norm)
    ratio = masked_log_ratio(logprobs.detach(), old, mask).exp()
    high = c.clip if c.clip_high is None else c.clip_high
    clipped = clip_fraction(ratio, advantages[:, None], mask, c.clip, high)
    record = {"loss": loss.item(), "entropy": entropy, "grad_norm": norm}
    return record | {"clip_fraction": clipped.item()}
