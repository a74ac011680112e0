"""PPO as a loop: ask, score, ask the critic who earned it, update both.

    rollouts = sample_rollouts(policy, prompts)                    rollouts.py
    rewards = token_rewards(scores, logprobs, ref_logprobs)        advantages.py
    advantages, returns = gae(rewards, values); whiten advantages  advantages.py
    loss = ppo_policy_loss(...) and ppo_value_loss(...)            ppo.py

Rewards, values and advantages are made once a batch, by the models as they were when
they sampled. What changes between mini-batches is the policy and the critic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.advantages import gae, token_rewards
from minillm.alignment.critic import Critic
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
from minillm.alignment.masked import masked_sum, masked_whiten
from minillm.alignment.ppo import (
    adapt_beta,
    explained_variance,
    ppo_policy_loss,
    ppo_value_loss,
)
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.alignment.settings import PPOConfig
from minillm.alignment.surrogate import approximate_kl, clip_fraction, masked_log_ratio
from minillm.errors import require
from minillm.model import GPT
from minillm.training import MetricsLog


def ppo(
    policy: GPT,
    critic: Critic,
    ref: GPT,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    config: PPOConfig,
    stop: int | None = None,
    pad: int = 0,
    progress: bool = True,
) -> MetricsLog:
    """Train policy and critic on the rewards of the policy's responses, in place.

    Args:
        policy, critic: they are changed.
        ref: frozen, another object than the policy.
        prompts: token ids of each.
        reward: (which prompt each row answers, rollouts) -> the score of each row.
        config: how.
        stop, pad: as for ``sample_rollouts``.
        progress: show a bar.

    Returns:
        for each step: mean reward, KL to the reference (nats per response), beta,
        entropy, clip fraction, KL to the old policy, explained variance, losses.

    Raises:
        ValueError: no prompt, the policy as its own reference, scores that are not
            finite.
        TrainingInterrupted: Ctrl-C; both models keep what they learned.
    """
    require(len(prompts) > 0, "prompts", prompts, "at least one", "ask something")
    remedy = "pass copy.deepcopy(policy), made before training"
    require(ref is not policy, "ref", "the policy", "another model", remedy)
    dice, beta = torch.Generator().manual_seed(config.seed), config.beta
    groups = [
        {"params": list(model.parameters()), "lr": lr}
        for model, lr in ((policy, config.lr), (critic, config.critic_lr))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)

    def step() -> dict[str, float]:
        nonlocal beta
        asked = torch.randint(len(prompts), (config.batch,), generator=dice).tolist()
        rows = [prompts[i] for i in asked]
        sizes = (config.max_new_tokens, config.sampling, stop, pad, dice)
        rollouts = sample_rollouts(policy, rows, *sizes)
        scores = rewards_of(reward(asked, rollouts), len(rows))
        models = (policy, critic, ref)
        seen = ppo_step(*models, optimizer, rollouts, scores, beta, config, dice)
        record = {"reward": scores.mean().item(), "beta": beta} | seen
        if config.target_kl is not None:
            beta = adapt_beta(beta, seen["kl"], config.target_kl)
        return record

    return repeat(step, config.steps, progress)


def ppo_step(
    policy: GPT,
    critic: Critic,
    ref: GPT,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    scores: Float[Tensor, " B"],
    beta: float,
    config: PPOConfig,
    dice: torch.Generator | None = None,
) -> dict[str, float]:
    """All updates from one batch of rollouts.

    Returns:
        means over the updates; KL and explained variance are those before them.
    """
    lessons, record = appraise(critic, ref, rollouts, scores, beta, config)
    everything, seen = torch.arange(len(scores)), []
    for _ in range(config.epochs):
        for rows in minibatches(everything, config.minibatch, dice):
            part = (select(rollouts, rows), Lessons(*(x[rows] for x in lessons)))
            seen.append(_update(policy, critic, optimizer, *part, config))
    return record | means(seen)


class Lessons(NamedTuple):
    """What a batch of rollouts teaches; constants while the models are updated."""

    advantages: Float[Tensor, "B T-1"]
    returns: Float[Tensor, "B T-1"]
    old_values: Float[Tensor, "B T-1"]


@torch.no_grad()
def appraise(
    critic: Critic,
    ref: GPT,
    rollouts: Rollouts,
    scores: Float[Tensor, " B"],
    beta: float,
    config: PPOConfig,
) -> tuple[Lessons, dict[str, float]]:
    """Find out which actions were better than expected; and what that looked like."""
    tokens, real, mask = rollouts.tokens, rollouts.real, rollouts.actions[:, 1:]
    values = critic(tokens, real)
    ref_logprobs = model_logprobs(ref, tokens, real, config.sampling)
    rewards = token_rewards(scores, rollouts.logprobs, ref_logprobs, mask, beta)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    record = {
        "kl": masked_sum(rollouts.logprobs - ref_logprobs, mask, dim=1).mean().item(),
        "explained_variance": explained_variance(values, returns, mask),
    }
    if config.whiten:  # after the returns, which are made of raw advantages
        advantages = masked_whiten(advantages, mask)
    return Lessons(advantages, returns, values), record


def _update(
    policy: GPT,
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    lessons: Lessons,
    config: PPOConfig,
) -> dict[str, float]:
    """One step of both models."""
    mask, old, A = rollouts.actions[:, 1:], rollouts.logprobs, lessons.advantages
    logprobs, entropy = policy_logprobs(policy, rollouts, config.sampling)
    policy_loss = ppo_policy_loss(logprobs, old, A, mask, config.clip)
    values, targets = critic(rollouts.tokens, rollouts.real), lessons.returns
    bounds = (lessons.old_values, targets, mask, config.value_clip)
    value_loss = ppo_value_loss(values, *bounds)
    modules = (policy, critic)  # no weight is shared, so each has its own gradient
    norm = update(policy_loss + value_loss, modules, optimizer, config.max_norm)
    moved = masked_log_ratio(logprobs.detach(), old, mask)
    clipped = clip_fraction(moved.exp(), A, mask, config.clip, config.clip)
    return {
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "entropy": entropy,
        "clip_fraction": clipped.item(),
        "old_kl": approximate_kl(moved, mask).item(),
        "grad_norm": norm,
    }
