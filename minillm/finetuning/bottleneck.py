r"""Bottleneck adapters: a small network behind each branch of each block.

.. math:: adapter(y) = y + W_{up} \, f(W_{down} \, y), \qquad
          W_{down}: C \to m, \quad W_{up}: m \to C, \quad W_{up} = 0 \text{ at first}

It stands where the branch's output is, before it is added to the residual stream. Since
it is not linear, it cannot be folded into a weight: every token pays for it for ever,
with two more products one after the other.

Several of them, each trained on its own task, can be asked together: AdapterFusion
freezes them and learns whom to listen to, with attention over adapters,

.. math:: \alpha_n = softmax_n (y^T Q^T K z_n), \qquad out = y + \sum_n \alpha_n V z_n

where z_n is what adapter n adds to y. That is no average of weights: it is decided
anew for each token.

Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1; Pfeiffer et al. 2021
(AdapterFusion, 2005.00247), section 3.2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.errors import require, require_count, require_one_of
from minillm.finetuning.targets import put

PLACES = ("self_attn", "mlp")


class Bottleneck(nn.Module):
    """What an adapter adds to a vector: down to m dimensions, and up again.

    Args:
        C: width of what comes in.
        width: m.

    Raises:
        ValueError: a width that is no count.

    >>> bool((Bottleneck(8, 2)(torch.randn(3, 8)) == 0).all())   # adds nothing at first
    True
    """

    def __init__(self, C: int, width: int):
        super().__init__()
        require_count(width=width)
        self.down, self.up = nn.Linear(C, width), nn.Linear(width, C)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        return self.up(F.gelu(self.down(y)))


class Fusion(nn.Module):
    """Several adapters, frozen, and attention that decides whom to listen to.

    Args:
        C: width of what comes in.
        adapters: trained ones; at least one.

    Differs from the paper: the scores are not regularised; V begins as the identity,
    as there, and Q and K small, so that at first all are heard alike.
    """

    def __init__(self, C: int, adapters: Sequence[Bottleneck]):
        super().__init__()
        n = len(adapters)
        require(n > 0, "adapters", n, "at least one", "train some first")
        self.adapters = nn.ModuleList(adapters).requires_grad_(False)
        self.query, self.key = (nn.Linear(C, C, bias=False) for _ in range(2))
        self.value = nn.Linear(C, C, bias=False)
        for matrix in (self.query, self.key):
            nn.init.normal_(matrix.weight, std=0.02)
        nn.init.eye_(self.value.weight)

    def attention(
        self, y: Float[Tensor, "... C"], z: Float[Tensor, "... N C"]
    ) -> Float[Tensor, "... N"]:
        """How much each adapter is listened to, at each position."""
        return (self.query(y)[..., None, :] * self.key(z)).sum(-1).softmax(-1)

    def forward(self, y: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        z = torch.stack([adapter(y) for adapter in self.adapters], dim=-2)  # ... N C
        return (self.attention(y, z)[..., None] * self.value(z)).sum(-2)


class WithAdapter(nn.Module):
    """A branch of a block, frozen, and what an adapter makes of its output."""

    def __init__(self, branch: nn.Module, adapter: nn.Module):
        super().__init__()
        self.branch, self.adapter = branch, adapter

    def forward(self, x: Float[Tensor, "B T C"], *past) -> Float[Tensor, "B T C"]:
        y = self.branch(x, *past)
        return y + self.adapter(y)


def apply_adapters(
    model: nn.Module, width: int = 16, places: Sequence[str] = PLACES
) -> nn.Module:
    """Freeze a model and put an adapter behind the named branches of all blocks.

    Raises:
        ValueError: a width that is no count, an unknown branch, a model that has
            adapters already.

    >>> from minillm.finetuning.adapted import count_trainable
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> count_trainable(apply_adapters(model, width=4))[0]   # 2 (4 16 + 4 + 16 4 + 16)
    296
    """
    C = model.config.n_embd
    require_count(width=width)
    return _behind(model, places, lambda _: Bottleneck(C, width))


def fuse_adapters(model: nn.Module, adapted: Sequence[nn.Module]) -> nn.Module:
    """Freeze a plain model and let it listen to the adapters of several models.

    Args:
        model: plain; changed in place.
        adapted: models from ``apply_adapters`` on the same base, each trained on its
            own task. Their adapters are shared and frozen.

    Raises:
        ValueError: models whose adapters stand in different places, or none.
    """
    placed = [bottlenecks(one) for one in adapted]
    same = len(placed) > 0 and all(set(p) == set(placed[0]) for p in placed)
    remedy = "apply_adapters to each with the same places"
    require(same, "adapted", len(placed), "adapters in the same places", remedy)
    C, places = model.config.n_embd, sorted({n.split(".")[-1] for n in placed[0]})
    return _behind(model, places, lambda n: Fusion(C, [p[n] for p in placed]))


def bottlenecks(model: nn.Module) -> dict[str, nn.Module]:
    """The adapters of a model, by the name of the branch that they stand behind."""
    modules = model.named_modules()
    return {name: m.adapter for name, m in modules if isinstance(m, WithAdapter)}


def _behind(
    model: nn.Module, places: Sequence[str], make: Callable[[str], nn.Module]
) -> nn.Module:
    for place in places:
        require_one_of(PLACES, places=place)
    remedy = "take a plain copy of the base"
    require(not bottlenecks(model), "model", "adapted", "without adapters", remedy)
    names = [f"layers.{i}.{p}" for i in range(len(model.layers)) for p in places]
    model.requires_grad_(False)
    for name in names:
        put(model, name, WithAdapter(model.get_submodule(name), make(name)))
    return model
