r"""LoRA: learn a change of low rank, and leave the weight alone.

Fine-tuning adds a matrix of changes to each weight. LoRA bets that this matrix has a
low rank, and learns its two factors:

.. math:: y = W x + \frac{\alpha}{r} B A x, \qquad
          A \in R^{r \times in}, \quad B \in R^{out \times r}

so instead of in times out numbers, r (in + out) are trained, and only these need a
gradient's optimizer states. B is 0 at first, and so the first forward pass that of the
base, bit for bit. A must not be 0 as well: each factor's gradient is proportional to
the other, and both zero would stay.

The factor :math:`\alpha / r` keeps the size of the update when r is changed, roughly:
the update of r random directions grows like :math:`\sqrt r`; rsLoRA divides by that.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; Kalajdzievski 2023 (rsLoRA,
2312.03732), theorem 3.2.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.errors import require, require_count, require_positive
from minillm.finetuning.adapted import AdaptedLinear, adapt, adapted_layers
from minillm.finetuning.targets import Targets


class LoRALinear(AdaptedLinear):
    r"""A frozen linear layer plus :math:`scaling \cdot B A`.

    Args:
        base: the layer; frozen here.
        rank: r.
        alpha: numerator of the scaling.
        dropout: of the input of A, during training.
        rank_stabilized: scale by alpha / sqrt(r) and not alpha / r.

    Raises:
        ValueError: a rank outside 1..min(in, out), an alpha that is not positive.

    Differs from the paper: A is drawn as nn.Linear draws its weight, uniform with
    bound 1 / sqrt(in), as in PEFT and in the authors' code.

    >>> layer = LoRALinear(nn.Linear(8, 4), rank=2, alpha=4)
    >>> x = torch.randn(3, 8)
    >>> bool((layer(x) == layer.base(x)).all()), layer.scaling
    (True, 2.0)
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rank_stabilized: bool = False,
    ):
        limit = min(base.in_features, base.out_features)
        remedy = "choose a smaller rank or full fine-tuning"
        require_count(rank=rank)
        require(rank <= limit, "rank", rank, f"in 1..min(in, out) = {limit}", remedy)
        require_positive(alpha=alpha)
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)", "0 has none")
        super().__init__(base)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.rank_stabilized = rank_stabilized
        weight = base.weight  # of a quantized layer: made anew, in float32
        like = {"dtype": weight.dtype, "device": weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r)."""
        r = self.rank
        return self.alpha / (math.sqrt(r) if self.rank_stabilized else r)

    def delta(self) -> Float[Tensor, "out in"]:
        """The change of the weight."""
        return self.scaling * (self.lora_B @ self.lora_A)

    def change(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The change of the output, without ever forming the matrix."""
        x = F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        y = self.base(x)
        return y if self.plain is not None else y + self.change(x).to(y.dtype)

    def merged(self) -> tuple[Float[Tensor, "out in"], None]:
        return self.base.weight + self.delta(), None


def apply_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Targets = ("q_proj", "v_proj"),
    dropout: float = 0.0,
    rank_stabilized: bool = False,
    layer: type[LoRALinear] = LoRALinear,
) -> nn.Module:
    """Freeze a model and give the layers that are named a change to learn.

    Args:
        model: changed in place.
        rank, alpha, dropout, rank_stabilized: of ``LoRALinear``.
        targets: endings of names, or "all". Hu et al. adapted queries and values; all
            linear layers are the better use of the same number of parameters
            (Dettmers et al. 2023, section 4).
        layer: ``DoRALinear`` for that one.

    Returns:
        the model.

    Raises:
        ValueError: as ``LoRALinear`` and ``select_linears``; the model is unchanged.

    >>> from minillm.finetuning.adapted import count_trainable
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    >>> count_trainable(apply_lora(model, rank=2))[0] == 2 * 2 * 2 * (16 + 16)
    True
    """
    settings = (rank, alpha, dropout, rank_stabilized)
    return adapt(model, targets, lambda base: layer(base, *settings))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers of a model that hold a LoRA, by name.

    Raises:
        ValueError: there is none.
    """
    layers = adapted_layers(model).items()
    found = {name: m for name, m in layers if isinstance(m, LoRALinear)}
    remedy = "apply_lora(model, ...) first"
    require(len(found) > 0, "model", "no LoRA", "one with a LoRA", remedy)
    return found
