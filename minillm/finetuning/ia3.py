r"""IA3: three vectors a block, each of which says how loud a dimension is.

.. math:: k \leftarrow \ell_k \odot k, \qquad v \leftarrow \ell_v \odot v, \qquad
          y_{ff} = W_{down} (\ell_{ff} \odot h)

All begin at 1. With a few hundred numbers a layer it is the smallest of the adapters,
and it can be merged: scaling what comes out scales rows of the weight, and scaling what
goes in scales columns.

Source: Liu et al. 2022 (T-Few, arXiv:2205.05638), section 3.3.
"""

from jaxtyping import Float
from torch import Tensor, nn

from minillm.finetuning.adapted import AdaptedLinear, adapt
from minillm.finetuning.targets import Targets, select_linears


class IA3Linear(AdaptedLinear):
    """A frozen linear layer whose outputs, or inputs, are scaled one by one.

    Args:
        base: the layer; frozen here.
        on_input: scale what goes in (feed-forward) and not what comes out. A bias
            belongs to what comes out and is scaled with it.

    >>> layer = IA3Linear(nn.Linear(8, 4))
    >>> layer.scale.shape, IA3Linear(nn.Linear(8, 4), on_input=True).scale.shape
    (torch.Size([4]), torch.Size([8]))
    """

    def __init__(self, base: nn.Module, on_input: bool = False):
        super().__init__(base)
        size = base.in_features if on_input else base.out_features
        self.scale = nn.Parameter(base.weight.detach().new_ones(size))
        self.on_input = on_input

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.plain is not None:
            return self.base(x)
        return self.base(x * self.scale) if self.on_input else self.base(x) * self.scale

    def merged(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        weight, bias = self.base.weight, self.base.bias
        if self.on_input:
            return weight * self.scale, None
        scaled = None if bias is None else bias * self.scale
        return weight * self.scale[:, None], scaled


def apply_ia3(
    model: nn.Module,
    targets: Targets = ("k_proj", "v_proj"),
    feedforward: Targets = ("down_proj",),
) -> nn.Module:
    """Freeze a model and scale keys, values and hidden units.

    Args:
        model: changed in place.
        targets: layers whose outputs are scaled.
        feedforward: layers whose inputs are.

    Raises:
        ValueError: as ``select_linears``.

    >>> from minillm.finetuning.adapted import count_trainable
    >>> from minillm.model import GPT, GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16, n_hidden=64))
    >>> count_trainable(apply_ia3(model))[0]   # 16 + 16 + 64
    96
    """
    select_linears(model, feedforward)  # before anything is changed
    adapt(model, targets, IA3Linear)
    return adapt(model, feedforward, lambda base: IA3Linear(base, on_input=True))
