r"""AdamW by hand, and which parameter gets which optimizer.

Adam keeps two running means of each gradient, of itself and of its square, and steps by
their ratio: a step whose size hardly depends on the scale of the gradient.

.. math::
    m &= \beta_1 m + (1 - \beta_1) g, \qquad v = \beta_2 v + (1 - \beta_2) g^2 \\
    w &= w - \eta \lambda w - \eta \, \frac{m / (1 - \beta_1^t)}
                                        {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

The W is for decoupled weight decay: the pull to zero, :math:`\eta \lambda w`, does not
pass through the ratio, as an L2 term in the gradient would.

Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from minillm.errors import require, require_one_of, require_positive
from minillm.training.distributed import full
from minillm.training.muon import Muon

OPTIMIZERS = ("muon", "adamw", "adamw-by-hand")


@torch.no_grad()
def adamw_update(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """Apply step ``t`` (from 1) to weight ``w`` and its moments ``m``, ``v``, in place.

    Args:
        w, g, m, v: tensors of one shape: weight, gradient, running means of it and of
            its square.
        t, lr, beta1, beta2, eps, weight_decay: the numbers of the formula above.

    >>> w = torch.ones(1); zero = torch.zeros(1)
    >>> adamw_update(w, zero, zero.clone(), zero.clone(), t=1, lr=0.1)   # only decay
    >>> w
    tensor([0.9900])
    """
    w.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - beta1)
    v.lerp_(g * g, 1 - beta2)
    m_hat = m / (1 - beta1**t)  # both means start at 0; this takes the bias away
    v_hat = v / (1 - beta2**t)
    w.sub_(lr * m_hat / (v_hat.sqrt() + eps))


class AdamW(Optimizer):
    """``adamw_update`` for groups of parameters; equals ``torch.optim.AdamW``.

    Args:
        params: parameters or groups; a group may have its own ``lr``, ``weight_decay``.
        lr: learning rate.
        betas: decay of the two running means.
        eps: keeps the ratio finite.
        weight_decay: lambda.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        require(lr >= 0, "lr", lr, "at least 0", "try 1e-3")
        inside = all(0 <= beta < 1 for beta in betas)
        require(inside, "betas", betas, "in [0, 1)", "try (0.9, 0.95)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(w)
                    state["exp_avg_sq"] = torch.zeros_like(w)
                state["step"] += 1
                moments = (state["exp_avg"], state["exp_avg_sq"], int(state["step"]))
                rates = (group["lr"], *group["betas"], group["eps"])
                adamw_update(w, w.grad, *moments, *rates, group["weight_decay"])


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort trainable parameters by what they are.

    ``matrices`` multiply the residual stream; ``embeddings`` are tables (the token
    embedding, an untied head): each row is a vector of its own; ``vectors`` are gains
    and biases, which have no direction to decay towards.

    >>> from minillm.model import GPT, GPTConfig
    >>> groups = parameter_groups(GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16)))
    >>> {name: len(group) for name, group in groups.items()}
    {'matrices': 7, 'embeddings': 1, 'vectors': 3}
    """
    groups: dict[str, list] = {"matrices": [], "embeddings": [], "vectors": []}
    for name, parameter in model.named_parameters():  # shared ones are named once
        if not parameter.requires_grad:
            continue
        table = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        kind = "embeddings" if table else "matrices"
        groups[kind if parameter.ndim > 1 else "vectors"].append(parameter)
    return groups


def build_optimizers(
    model, name="muon", lr=5e-3, matrix_lr=0.02, betas=(0.9, 0.95), weight_decay=0.1
) -> list[Optimizer]:
    """Make the optimizers of a model; together they hold each parameter once.

    Args:
        model: whose trainable parameters they take.
        name: ``"adamw"`` (torch's), ``"adamw-by-hand"`` (ours, equal), or ``"muon"``:
            Muon for matrices and torch's AdamW for the rest.
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon.
        betas: of AdamW.
        weight_decay: for parameters of two dimensions; vectors are not decayed.

    Raises:
        ValueError: an unknown name or nothing to train.
    """
    require_one_of(OPTIMIZERS, optimizer=name)
    groups = parameter_groups(model)
    n = sum(len(group) for group in groups.values())
    require(n > 0, "model", n, "trainable", "set requires_grad on some parameters")
    matrices = groups["matrices"]
    tables = groups["embeddings"] + ([] if name == "muon" else matrices)
    by_adam = [{"params": tables, "weight_decay": weight_decay}]
    by_adam += [{"params": groups["vectors"], "weight_decay": 0.0}]
    if name == "adamw-by-hand":
        optimizers = [AdamW(by_adam, lr=lr, betas=betas)]
    else:
        optimizers = [torch.optim.AdamW(by_adam, lr=lr, betas=betas, fused=True)]
    if name == "muon" and matrices:
        optimizers += [Muon(matrices, lr=matrix_lr, weight_decay=weight_decay)]
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    r"""Scale all gradients together so that their common norm is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min(1, c / (\|g\| + 10^{-6})), \qquad
              \|g\| = \sqrt{\sum_i \|g_i\|^2}

    One factor for all of them keeps the direction; clipping each element or each tensor
    would turn it.

    Returns:
        the norm before clipping.

    Source: Pascanu et al. 2013, algorithm 1.

    >>> w = nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([3.0, 4.0])
    >>> round(clip_gradients([w], max_norm=1.0), 3), w.grad
    (5.0, tensor([0.6000, 0.8000]))
    """
    require_positive(max_norm=max_norm)  # infinity clips nothing
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = [full(torch.linalg.vector_norm(g)) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms)).item()
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
    return norm
