r"""Which token goes to which expert, and how loud the answer is.

A router scores E experts for each token, and a few of them are asked:

.. math:: s = softmax(W x) \;\text{or}\; \sigma(W x), \qquad
          y = \sum_{e \in TopK(s + b)} g_e \, f_e(x), \qquad
          g_e = \frac{s_e}{\sum_{j \in TopK} s_j}

Choosing has no gradient. The router learns only because the gates g multiply what the
experts say: an expert that was not asked is never missed. That is why routers collapse,
and what ``balancing`` is about.

All of it is a list of assignments (token, expert, gate), the most important first. What
overflows an expert's buffer is then the end of its part of the list, and experts that
choose their tokens make the same kind of list as tokens that choose their experts.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minillm.errors import require, require_count, require_positive


@dataclass(frozen=True, eq=False)
class Routing:
    """Assignments of N tokens to E experts, A of them, in order of precedence.

    Args:
        tokens, experts: of each assignment.
        gates: what an expert's answer is multiplied by; carries the router's gradient.
        scores: of all experts, for the losses that balance.
    """

    tokens: Int[Tensor, " A"]
    experts: Int[Tensor, " A"]
    gates: Float[Tensor, " A"]
    scores: Float[Tensor, "N E"]

    @property
    def counts(self) -> Int[Tensor, " E"]:
        """How many assignments each expert has."""
        return torch.bincount(self.experts, minlength=self.scores.shape[1])

    @property
    def load(self) -> Float[Tensor, " E"]:
        """The part of all assignments that each expert has; sums to 1."""
        return self.counts.to(self.scores.dtype) / max(1, len(self.experts))

    def pick(self, which: Tensor) -> "Routing":
        """Some of the assignments, by a mask or by their places."""
        parts = (self.tokens, self.experts, self.gates)
        return Routing(*(part[which] for part in parts), self.scores)

    def detach(self) -> "Routing":
        """The same without gradients, to be looked at later."""
        gates, scores = self.gates.detach(), self.scores.detach()
        return replace(self, gates=gates, scores=scores)


def choose_experts(
    scores: Float[Tensor, "N E"],
    k: int,
    renormalise: bool = True,
    scale: float = 1.0,
    choice: Float[Tensor, "N E"] | None = None,
) -> Routing:
    """Every token takes the k experts that it scores highest.

    All first choices precede all second choices (GShard); among equals the earlier
    token is first, as in Switch.

    Args:
        scores: positive, such as a softmax; the gates are taken from these.
        k: experts a token.
        renormalise: divide the gates of a token by their sum. With k = 1 the gate is
            then always 1 and the router learns nothing, so Switch does not.
        scale: multiplies the gates (DeepSeek-V3: 2.5).
        choice: what is compared instead of ``scores``, for instance with a bias added.

    Raises:
        ValueError: k outside 1..E.

    Source: Shazeer et al. 2017, section 2.1; Fedus et al. 2021 (Switch), equations 1
    and 2; Jiang et al. 2024 (Mixtral), section 2.1: softmax over the top k logits only,
    which is the same as renormalised gates.

    >>> routing = choose_experts(torch.tensor([[0.5, 0.3, 0.2]]), k=2)
    >>> routing.experts, routing.gates
    (tensor([0, 1]), tensor([0.6250, 0.3750]))
    """
    N, E = scores.shape
    require_count(k=k)
    require(k <= E, "k", k, f"in 1..{E}, the number of experts", "ask fewer")
    experts = (scores if choice is None else choice).topk(k).indices
    gates = scores.gather(1, experts)
    if renormalise:
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-20)
    tokens = torch.arange(N, device=scores.device).repeat(k)
    return Routing(tokens, experts.T.flatten(), scale * gates.T.flatten(), scores)


def choose_tokens(scores: Float[Tensor, "N E"], n: int) -> Routing:
    """Every expert takes the n tokens that score it highest: balanced by construction.

    Some tokens are taken by many experts and some by none. And it is not causal:
    whether a token is taken depends on those after it. A language model trained so sees
    a little of the future, and writing one token at a time it cannot do the same.

    Args:
        scores: softmax over the experts; the gates are taken from these, unchanged.
        n: tokens an expert.

    Raises:
        ValueError: n outside 1..N.

    Source: Zhou et al. 2022, equations 1 and 2.

    >>> choose_tokens(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), n=1).tokens
    tensor([0, 2])
    """
    N, E = scores.shape
    require_count(n=n)
    require(n <= N, "n", n, f"in 1..{N}, the number of tokens", "lower the capacity")
    gates, tokens = scores.topk(n, dim=0)  # n E
    experts = torch.arange(E, device=scores.device).repeat(n)
    return Routing(tokens.flatten(), experts, gates.flatten(), scores)


def limit_to_groups(
    choice: Float[Tensor, "N E"], groups: int, keep: int
) -> Float[Tensor, "N E"]:
    """Let each token choose within few groups of experts, as few machines as possible.

    A group is worth the sum of its two highest scores; others become minus infinity.

    Args:
        choice: what is compared, bias included.
        groups: of E / groups neighbouring experts.
        keep: groups that a token may choose in.

    Source: DeepSeek-V3 (2024), section 2.1.2, node-limited routing; the sum of two is
    that of its published code.

    >>> limit_to_groups(torch.tensor([[0.9, 0.0, 0.6, 0.5]]), groups=2, keep=1)
    tensor([[  -inf,   -inf, 0.6000, 0.5000]])
    """
    grouped = choice.unflatten(1, (groups, -1))  # N groups E/groups
    worth = grouped.topk(min(2, grouped.shape[-1])).values.sum(-1)
    kept = torch.zeros_like(worth).scatter(1, worth.topk(keep).indices, 1) > 0
    return grouped.where(kept[..., None], -math.inf).flatten(1)


def capacity(N: int, E: int, k: int, factor: float) -> int:
    r"""How many assignments fit an expert's buffer.

    .. math:: capacity = \lceil factor \cdot k N / E \rceil

    Raises:
        ValueError: a factor that is not positive: nothing would fit.

    Source: Lepikhin et al. 2020 (GShard); Fedus et al. 2021, equation 3, for k = 1.

    >>> capacity(N=100, E=8, k=2, factor=1.25)
    32
    """
    require_positive(factor=factor)
    return math.ceil(factor * k * N / E)


def places(routing: Routing) -> Int[Tensor, " A"]:
    """The place of each assignment in its expert's queue, from 0.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> places(choose_experts(scores, k=1))
    tensor([0, 1, 0])
    """
    queue = F.one_hot(routing.experts, routing.scores.shape[1]).cumsum(0)  # A E
    return queue.gather(1, routing.experts[:, None]).squeeze(1) - 1


def drop_overflow(routing: Routing, size: int) -> Routing:
    """Drop the assignments that come too late for a buffer of ``size`` places.

    A token whose assignments are all dropped gets zero from the layer: it passes on in
    the residual stream as it is.

    Source: Fedus et al. 2021, section 2.2.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> drop_overflow(choose_experts(scores, k=1), size=1).tokens
    tensor([0, 2])
    """
    require_count(size=size)
    return routing.pick(places(routing) < size)
