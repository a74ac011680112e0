"""PPO as a loop: ask, score, ask the critic who earned it, update both.

    rollouts = sample_rollouts(policy, prompts)                    rollouts.py
    rewards = token_rewards(scores, logprobs, ref_logprobs)        advantages.py
    advantages, returns = gae(rewards, values); whiten advantages  advantages.py
    loss = ppo_policy_loss(...) and ppo_value_loss(...)            ppo.py

Rewards, values and advantages are made once a batch, by the models as they were when
they sampled. What changes between mini-batches is the policy and the critic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.advantages import gae, token_rewards
from minillm.alignment.critic import Critic
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.loop import (
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
from minillm.alignment.surrogate import approximate_kl, clip_fraction, masked_log_ratio
from minillm.alignment.verifiers import Reward
from minillm.errors import require, require_count, require_positive
from minillm.model import GPT, Sampling
from minillm.training import MetricsLog


@dataclass(frozen=True)
class PPOConfig:
    """How to train.

    Args:
        steps: batches of rollouts.
        batch: responses in a step.
        epochs: how often a batch is gone through.
        minibatch: rows in an update.
        lr, critic_lr: of AdamW, for the policy and for the critic.
        clip: of the policy's ratio.
        value_clip: of the critic's moves, in units of the reward.
        gamma, lam: of ``gae``.
        whiten: bring advantages to mean 0 and variance 1 over the batch.
        beta: price of a nat of KL to the reference.
        target_kl: nats per response that beta is adapted to; None keeps beta.
        max_new_tokens, sampling: of the responses.
        max_norm: of the gradient of policy and of critic.
        seed: of prompts, samples and order.

    Raises:
        ValueError: a size that is no count, a rate that is not positive.
    """

    steps: int = 100
    batch: int = 64
    epochs: int = 2
    minibatch: int = 32
    lr: float = 3e-4
    critic_lr: float = 1e-3
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    beta: float = 0.1
    target_kl: float | None = None
    max_new_tokens: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "epochs", "minibatch", "max_new_tokens")
        require_count(**{name: getattr(self, name) for name in counts})
        rates = ("lr", "critic_lr", "clip", "value_clip", "max_norm")
        require_positive(**{name: getattr(self, name) for name in rates})
        require(self.beta >= 0, "beta", self.beta, "at least 0", "0 is no penalty")
        require_positive(target_kl=1.0 if self.target_kl is None else self.target_kl)


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
    c, mask = config, rollouts.actions[:, 1:]
    with torch.no_grad():
        old_values = critic(rollouts.tokens, rollouts.real)
        ref_logprobs = model_logprobs(
            ref, rollouts.tokens, rollouts.real, config.sampling
        )
    rewards = token_rewards(scores, rollouts.logprobs, ref_logprobs, mask, beta)
    advantages, returns = gae(rewards, old_values, mask, c.gamma, c.lam)
    kl = masked_sum(rollouts.logprobs - ref_logprobs, mask, dim=1).mean().item()
    known = explained_variance(old_values, returns, mask)
    if c.whiten:  # after the returns, which are made of raw advantages
        advantages = masked_whiten(advantages, mask)
    seen = []
    for _ in range(c.epochs):
        for rows in minibatches(len(scores), c.minibatch, dice):
            part, A = select(rollouts, rows), advantages[rows]
            acts, old = part.actions[:, 1:], part.logprobs
            logprobs, entropy = policy_logprobs(policy, part, c.sampling)
            policy_loss = ppo_policy_loss(logprobs, old, A, acts, c.clip)
            values = critic(part.tokens, part.real)
            targets = (old_values[rows], returns[rows])
            value_loss = ppo_value_loss(values, *targets, acts, c.value_clip)
            update(policy_loss + value_loss, [policy, critic], optimizer, c.max_norm)
            log_ratio = masked_log_ratio(logprobs.detach(), old, acts)
            clipped = clip_fraction(log_ratio.exp(), A, acts, c.clip, c.clip)
            moved = approximate_kl(log_ratio, acts)
            losses = (policy_loss.item(), value_loss.item())
            seen.append((*losses, entropy, clipped.item(), moved.item()))
    names = ("policy_loss", "value_loss", "entropy", "clip_fraction", "old_kl")
    means = torch.tensor(seen).mean(dim=0).tolist()
    return {"kl": kl, "explained_variance": known} | dict(
        zip(names, means, strict=True)
    )
