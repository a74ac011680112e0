"""How PPO and GRPO train: every number that the loops ask for, with its door."""

from dataclasses import dataclass, field

from minillm.alignment.grpo import AGGREGATIONS, LEVELS
from minillm.errors import require, require_count, require_one_of, require_positive
from minillm.model import Sampling


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
        skip_equal: leave groups whose rewards are all equal out of the update, and of
            its means; their gradient is 0, but takes as long as any other (DAPO, which
            also samples others in their place).
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
    skip_equal: bool = False
    beta: float = 0.0
    kl: str = "loss"
    max_new_tokens: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "prompts", "group", "epochs", "max_new_tokens")
        require_count(**{name: getattr(self, name) for name in counts})
        require_count(minibatch=1 if self.minibatch is None else self.minibatch)
        remedy = "one response has nothing to be compared with"
        require(self.group > 1, "group", self.group, "at least 2", remedy)
        require_positive(lr=self.lr, clip=self.clip, max_norm=self.max_norm)
        require(self.beta >= 0, "beta", self.beta, "at least 0", "0 is no penalty")
        require_one_of(AGGREGATIONS, aggregation=self.aggregation)
        require_one_of(LEVELS, level=self.level)
        require_one_of(("loss", "reward"), kl=self.kl)
        alone = not (self.skip_equal and self.beta > 0 and self.kl == "loss")
        need, remedy = "False with KL in the loss", "all groups pay for KL there"
        require(alone, "skip_equal", self.skip_equal, need, remedy)
