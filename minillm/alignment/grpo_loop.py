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
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.alignment.groups import group_advantages
from minillm.alignment.grpo import AGGREGATIONS, LEVELS, grpo_loss
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.loop import (
    minibatches,
    policy_logprobs,
    repeat,
    rewards_of,
    select,
    update,
)
from minillm.alignment.masked import masked_sum
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.alignment.surrogate import clip_fraction, masked_log_ratio
from minillm.alignment.verifiers import Reward
from minillm.errors import require, require_count, require_one_of, require_positive
from minillm.model import GPT, Sampling
from minillm.training import MetricsLog


@dataclass(frozen=True)
class GRPOConfig:
    """How to train.

    Args:
        steps: batches of rollouts.
        prompts: P of them in a step.
        group: G responses to each.
        epochs: how often a batch is gone through.
        minibatch: rows in an update; all P * G if not given.
        lr: of AdamW.
        clip, clip_high, aggregation, level: of ``grpo_loss``.
        normalize: of ``group_advantages``.
        beta: price of a nat of KL to the reference.
        kl: "loss" or "reward": where the price is paid.
        max_new_tokens: of a response; also the L of "constant".
        sampling: how responses are drawn; its temperature counts in scoring, too.
        max_norm: of the gradient.
        seed: of prompts, samples and order.

    Raises:
        ValueError: a size that is no count, a group of one, an unknown word.
    """

    steps: int = 200
    prompts: int = 16
    group: int = 8
    epochs: int = 1
    minibatch: int | None = None
    lr: float = 3e-4
    clip: float = 0.2
    clip_high: float | None = None
    aggregation: str = "sequence"
    level: str = "token"
    normalize: bool = True
    beta: float = 0.0
    kl: str = "loss"
    max_new_tokens: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "prompts", "group", "epochs", "max_new_tokens")
        require_count(**{name: getattr(self, name) for name in counts})
        require_count(minibatch=self.minibatch or 1)
        remedy = "one response has nothing to be compared with"
        require(self.group > 1, "group", self.group, "at least 2", remedy)
        require_positive(lr=self.lr, clip=self.clip, max_norm=self.max_norm)
        require(self.beta >= 0, "beta", self.beta, "at least 0", "0 is no penalty")
        require_one_of(AGGREGATIONS, aggregation=self.aggregation)
        require_one_of(LEVELS, level=self.level)
        require_one_of(("loss", "reward"), kl=self.kl)


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
        means over the updates; the KL is that of the policy that sampled.
    """
    mask, (B, c) = rollouts.actions[:, 1:], (len(rewards), config)
    ref_logprobs = _ref_logprobs(ref, rollouts, c)
    drift = masked_log_ratio(rollouts.logprobs, ref_logprobs, mask)
    kl = masked_sum(drift, mask, dim=1)
    if c.kl == "reward":
        rewards = rewards - c.beta * kl
    groups = rewards.view(-1, c.group)
    advantages = group_advantages(groups, c.normalize).flatten()
    seen = []
    for _ in range(c.epochs):
        for rows in minibatches(B, c.minibatch or B, dice):
            part, A = select(rollouts, rows), advantages[rows]
            logprobs, entropy = policy_logprobs(model, part, c.sampling)
            acts, beta = part.actions[:, 1:], c.beta if c.kl == "loss" else 0.0
            bounds = (c.clip, c.clip_high)
            kinds = (c.aggregation, c.level, c.max_new_tokens)
            old, anchor = part.logprobs, ref_logprobs[rows]
            loss = grpo_loss(logprobs, old, A, acts, *bounds, beta, anchor, *kinds)
            norm = update(loss, [model], optimizer, c.max_norm)
            ratio = masked_log_ratio(logprobs.detach(), old, acts).exp()
            clipped = clip_fraction(
                ratio, A[:, None], acts, c.clip, c.clip_high or c.clip
            )
            seen.append((entropy, clipped.item(), norm))
    names = ("entropy", "clip_fraction", "grad_norm")
    means = torch.tensor(seen).mean(dim=0).tolist()
    equal = (groups == groups[:, :1]).all(dim=1)
    return dict(zip(names, means, strict=True)) | {
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
