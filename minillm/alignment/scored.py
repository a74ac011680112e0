"""What a loss of preferences sees: one number for each response, its log-prob.

By sum over the response's tokens or by mean is the loss's own choice, and the classic
mistake. So both have a name here, and the loss says which it means where it is called:

    lambda s, beta: dpo_loss(*s.sums, beta)       also robust, hinge, ipo (the paper's)
    lambda s, beta: ipo_loss(*s.means, beta)      ipo as its authors run it
    lambda s, beta: simpo_loss(*s.policy_means, beta, gamma=0.5)
    lambda s, beta: orpo_loss(*s.policy_means, beta)
    lambda s, beta: cpo_loss(*s.policy_sums, beta)
    lambda s, beta: kto_loss(*s.judged, beta)     of ``ScoredFeedback``
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.alignment.dpo import dpo_rewards, reward_metrics
from minillm.alignment.kto import kto_kl
from minillm.errors import require

Four = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Scored:
    """Log-probs of the responses of a batch, first all chosen, then all rejected.

    Args:
        policy: (2B,) in nats, summed over each response's tokens; with a gradient.
        lengths: (2B,) tokens of each response.
        ref: (2B,) of the reference, summed; ``None`` without one.
    """

    policy: Float[Tensor, " 2B"]
    lengths: Int[Tensor, " 2B"]
    ref: Float[Tensor, " 2B"] | None = None

    @property
    def policy_sums(self) -> tuple[Tensor, Tensor]:
        """Chosen and rejected: for CPO."""
        return self.policy.chunk(2)

    @property
    def policy_means(self) -> tuple[Tensor, Tensor]:
        """Chosen and rejected, per token: for SimPO and ORPO."""
        return (self.policy / self.lengths).chunk(2)

    @property
    def sums(self) -> Four:
        """Policy chosen, rejected, reference chosen, rejected: for DPO."""
        return *self.policy_sums, *self._ref().chunk(2)

    @property
    def means(self) -> Four:
        """The same per token: for IPO as its authors run it."""
        return *self.policy_means, *(self._ref() / self.lengths).chunk(2)

    def _ref(self) -> Tensor:
        remedy = "give ref to prefer, or use a loss without a reference"
        require(self.ref is not None, "ref", self.ref, "a model for this loss", remedy)
        return self.ref

    def metrics(self, beta: float) -> dict[str, float]:
        """What to watch. ``chosen_logprob`` may fall; ``margin`` should not.

        ``reward`` is the implicit one of the chosen responses: beta times the log-ratio
        or, without a reference, beta times the log-prob per token.
        """
        policy = self.policy.detach()
        if self.ref is None:
            rewards = beta * policy / self.lengths
        else:
            rewards = dpo_rewards(policy, self.ref, beta)
        m = reward_metrics(*rewards.chunk(2))
        logprobs = [half.detach().mean().item() for half in self.policy_sums]
        found = {"reward": m.chosen, "rejected_reward": m.rejected}
        found |= {"margin": m.margin, "accuracy": m.accuracy}
        return found | dict(
            zip(("chosen_logprob", "rejected_logprob"), logprobs, strict=True)
        )


@dataclass(frozen=True)
class ScoredFeedback:
    """Log-probs of single responses that somebody liked or did not.

    Args:
        policy, ref: (B,) in nats, summed over each response's tokens.
        desirable: (B,) True where it was liked.
        policy_mismatched, ref_mismatched: (B,) the same of responses to other prompts.
    """

    policy: Float[Tensor, " B"]
    ref: Float[Tensor, " B"]
    desirable: Bool[Tensor, " B"]
    policy_mismatched: Float[Tensor, " B"]
    ref_mismatched: Float[Tensor, " B"]

    @property
    def judged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Policy, reference, labels and reference point: for KTO."""
        kl = kto_kl(self.policy_mismatched, self.ref_mismatched)
        return self.policy, self.ref, self.desirable, kl

    def metrics(self, beta: float) -> dict[str, float]:
        """Rewards with the sign of the label, so that all should rise; and z0.

        ``accuracy`` is the part that is on its side of the reference; 0 counts half.
        """
        rewards = dpo_rewards(self.policy.detach(), self.ref, beta)
        signed = torch.where(self.desirable, rewards, -rewards)
        m = reward_metrics(signed, torch.zeros_like(signed))
        kl = self.judged[-1].item()
        return {"reward": m.chosen, "accuracy": m.accuracy, "mismatched_kl": kl}
