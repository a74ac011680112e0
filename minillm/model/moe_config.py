"""The shape of a layer of experts, and what it costs: much memory, few operations."""

from dataclasses import dataclass

from minillm.errors import (
    is_count,
    require,
    require_count,
    require_one_of,
    require_positive,
)
from minillm.model.config import GPTConfig, count_parameters


@dataclass(frozen=True)
class MoEConfig:
    """A layer of experts. The defaults are Mixtral's, without its balancing loss.

    Args:
        n_experts: E.
        k: experts that a token asks.
        n_hidden: width of an expert; ``None`` divides the dense layer's by the number
            of experts that a token meets, so that it costs as many operations.
        n_shared: experts that every token meets beside the k, as one wide layer.
        scores: ``"softmax"`` over the experts, or ``"sigmoid"`` of each by itself.
        renormalise, scale: of the gates; see ``choose_experts``.
        chosen_by: ``"tokens"`` or ``"experts"``; see ``choose_tokens``.
        capacity: factor of an expert's buffer; ``None`` drops nothing. It holds while
            training: a text must not depend on what else is in its batch. Where experts
            choose, it says how many tokens they take, always (``None``: 1).
        noise: whether a learned noise is added to the logits while training.
        groups, keep_groups: see ``limit_to_groups``.
        balance, z: weights of ``balance_loss`` and ``z_loss``, charged while training.

    Raises:
        ValueError: k above the number of experts, a capacity of 0, groups that do not
            divide or leave fewer than k experts, negative weights.

    >>> MoEConfig(n_experts=4, k=5)
    Traceback (most recent call last):
    ValueError: k must be in 1..4, the number of experts, got 5; ask fewer
    """

    n_experts: int = 8
    k: int = 2
    n_hidden: int | None = None
    n_shared: int = 0
    scores: str = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    chosen_by: str = "tokens"
    capacity: float | None = None
    noise: bool = False
    groups: int = 1
    keep_groups: int = 1
    balance: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        E, k, G, keep = self.n_experts, self.k, self.groups, self.keep_groups
        require_count(n_experts=E, k=k, groups=G, keep_groups=keep)
        require(k <= E, "k", k, f"in 1..{E}, the number of experts", "ask fewer")
        require_one_of(("softmax", "sigmoid"), scores=self.scores)
        require_one_of(("tokens", "experts"), chosen_by=self.chosen_by)
        require_positive(scale=self.scale)
        require_count(n_hidden=1 if self.n_hidden is None else self.n_hidden)
        require_positive(capacity=1 if self.capacity is None else self.capacity)
        whole, S = is_count(self.n_shared + 1), self.n_shared
        require(whole, "n_shared", S, "an int of at least 0", "0 has none")
        for name in ("balance", "z"):
            value = getattr(self, name)
            require(value >= 0, name, value, "at least 0", "0 has none")
        require(E % G == 0, "groups", G, f"a divisor of n_experts = {E}", "change it")
        room = f"in 1..{G}, with room for k = {k} experts"
        fits = keep <= G and keep * E // G >= k
        require(fits, "keep_groups", keep, room, "keep more groups")

    def width(self, model: GPTConfig) -> int:
        """Hidden units of one expert, in place of a dense layer of ``model``."""
        met, F = self.k + self.n_shared, model.n_hidden
        need = f"at most {F}, the dense layer's hidden units"
        require(met <= F or self.n_hidden, "k + n_shared", met, need, "give n_hidden")
        return self.n_hidden or F // met


def count_moe_parameters(config: GPTConfig, moe: MoEConfig) -> dict[str, int]:
    r"""Count the parameters of a model of experts, and those that one token meets.

    .. math:: N_{mlp} = L \, (n \cdot 3 C F + C E), \qquad
              n = E + S \text{ in all}, \quad n = k + S \text{ active}

    The matrix of ``noise``, used in training only, is left out.

    >>> mixtral = GPTConfig(32_000, n_layer=32, n_head=32, n_kv_head=8, n_embd=4096,
    ...                     n_hidden=14_336, tied=False)
    >>> count_moe_parameters(mixtral, MoEConfig(n_hidden=14_336))
    {'total': 46702792704, 'active': 12879925248}
    """
    parts, C, E = count_parameters(config), config.n_embd, moe.n_experts
    expert, rest = 3 * C * moe.width(config), parts["total"] - parts["mlp"]
    met = {"total": E + moe.n_shared, "active": moe.k + moe.n_shared}
    return {
        name: rest + config.n_layer * (n * expert + C * E) for name, n in met.items()
    }
