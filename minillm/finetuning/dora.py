r"""DoRA: learn how long each row of the weight is, and apart from that where it points.

.. math:: W' = m \, \frac{W + s B A}{\| W + s B A \|_{row}}, \qquad
          m = \| W \|_{row} \text{ at first}

Full fine-tuning often turns a row without stretching it, or the other way round. In
LoRA both come from the same two factors; here the length is a number of its own.

The norm counts as a constant in the gradient: it is recomputed in each step, but not
differentiated, which saves the memory of a second graph and changes little.

Source: Liu et al. 2024 (arXiv:2402.09353), equations 5 and 11. Differs from the paper:
it speaks of columns of W, which there is (in x out); rows of ours, one for each output.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minillm.finetuning.lora import LoRALinear


class DoRALinear(LoRALinear):
    """A LoRA whose rows have lengths of their own, ``magnitude``.

    Arguments and errors as for ``LoRALinear``. Dropout reaches the factors only; a bias
    of the base is added unscaled.

    >>> layer = DoRALinear(nn.Linear(8, 4), rank=2, alpha=4)
    >>> x = torch.randn(3, 8)
    >>> bool(torch.allclose(layer(x), layer.base(x), atol=1e-6))
    True
    """

    def __init__(self, base: nn.Module, *settings, **named):
        super().__init__(base, *settings, **named)
        weight = base.weight.detach().to(self.lora_A.dtype)
        self.magnitude = nn.Parameter(weight.norm(dim=1))

    def stretch(self) -> Float[Tensor, " out"]:
        """m / norm: the factor of each row. A row of zeros stays one."""
        with torch.no_grad():
            norm = (self.base.weight + self.delta()).norm(dim=1)
        return self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.plain is not None:
            return self.base(x)
        y = self.stretch() * (F.linear(x, self.base.weight) + self.change(x))
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> tuple[Float[Tensor, "out in"], None]:
        return self.stretch()[:, None] * (self.base.weight + self.delta()), None
