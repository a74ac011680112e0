r"""A mixture of experts: many feed-forward layers, of which a token uses few.

.. math:: y = \sum_{e \in TopK} g_e(x) \, swiglu_e(x) + \sum_s swiglu_s(x)

Parameters grow with the number of experts, operations only with k. So at equal
operations a model can know more; what it costs is memory, and a router that has to be
kept from sending everything to the same few (``balancing``). Read ``routing``, then
``balancing`` and ``experts``; here they become a layer, and the layer part of a model:

    model = with_experts(GPT(config), MoEConfig(n_experts=8, k=2, balance=0.01))
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.errors import require
from minillm.model.balancing import (
    ChargedLoss,
    balance_loss,
    noisy_logits,
    nudge,
    z_loss,
)
from minillm.model.experts import grouped
from minillm.model.gpt import GPT
from minillm.model.layers import SwiGLU, at_least_float32
from minillm.model.moe_config import MoEConfig
from minillm.model.routing import (
    Routing,
    capacity,
    choose_experts,
    choose_tokens,
    drop_overflow,
    limit_to_groups,
)


class MoE(nn.Module):
    """A router and its experts, in place of a feed-forward layer.

    Padding is routed like any token: it fills buffers and counts in the losses.

    Args:
        config: how to route.
        C: width of the residual stream.
        experts: E layers from (n, C) to (n, C).
        shared: a layer that every token passes through besides.

    After a forward pass ``routing`` holds who was asked, without gradients, and
    ``dropped`` the part of the assignments for which there was no room.

    >>> experts = [nn.Linear(16, 16) for _ in range(4)]
    >>> layer = MoE(MoEConfig(n_experts=4), C=16, experts=experts)
    >>> layer(torch.randn(2, 5, 16)).shape, layer.routing.experts.shape
    (torch.Size([2, 5, 16]), torch.Size([20]))
    """

    def __init__(
        self,
        config: MoEConfig,
        C: int,
        experts: Sequence[nn.Module],
        shared: nn.Module | None = None,
    ):
        super().__init__()
        n, E = len(experts), config.n_experts
        require(n == E, "experts", n, f"as many as n_experts = {E}", "give each once")
        self.config, self.shared_experts = config, shared
        self.gate = nn.Linear(C, E, bias=False)
        self.spread = nn.Linear(C, E, bias=False) if config.noise else None
        self.experts = nn.ModuleList(experts)
        self.register_buffer("bias", torch.zeros(E))  # for choosing only
        self.routing: Routing | None = None
        self.dropped = 0.0

    def route(self, x: Float[Tensor, "N C"]) -> tuple[Routing, Float[Tensor, ""]]:
        """Who is to be asked, before any is dropped, and what this costs.

        In float32 at least: a rounded logit would be another expert.
        """
        c, N = self.config, len(x)
        logits = at_least_float32(self.gate(x))
        if self.spread is not None and self.training:
            logits = noisy_logits(logits, at_least_float32(self.spread(x)))
        scores = logits.softmax(-1) if c.scores == "softmax" else logits.sigmoid()
        if c.chosen_by == "experts":
            size = capacity(N, c.n_experts, c.k, c.capacity or 1.0)
            routing = choose_tokens(scores, min(N, size))
        else:
            choice = scores.detach() + self.bias
            if c.groups > 1:
                choice = limit_to_groups(choice, c.groups, c.keep_groups)
            routing = choose_experts(scores, c.k, c.renormalise, c.scale, choice)
        loss = c.balance * balance_loss(scores, routing.load) + c.z * z_loss(logits)
        return routing, loss

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        c, flat = self.config, x.flatten(0, -2)
        routing, loss = self.route(flat)
        self.routing, A = routing.detach(), len(routing.experts)
        if self.training and c.capacity and c.chosen_by == "tokens":
            size = capacity(len(flat), c.n_experts, c.k, c.capacity)
            routing = drop_overflow(routing, size)
        self.dropped = 1 - len(routing.experts) / A
        y = grouped(flat, routing, self.experts)
        if self.shared_experts is not None:
            y = y + self.shared_experts(flat)
        if self.training and loss.requires_grad and c.balance + c.z > 0:
            y = ChargedLoss.apply(y, loss)
        return y.view_as(x)


def with_experts(
    model: GPT, config: MoEConfig, layers: Sequence[int] | None = None
) -> GPT:
    """Put fresh experts in place of a model's feed-forward layers.

    Args:
        model: changed in place.
        config: of the experts.
        layers: which blocks; ``None`` means all.

    Returns:
        the model. It trains like any other; its files are no Llama's.

    Raises:
        ValueError: a block that is not there.

    >>> from minillm.model.config import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    >>> len(moe_layers(with_experts(model, MoEConfig(n_experts=4), layers=[1])))
    1
    """
    L, C = model.config.n_layer, model.config.n_embd
    chosen = range(L) if layers is None else layers
    inside = all(0 <= i < L for i in chosen)
    require(inside, "layers", layers, f"in 0..{L - 1}", "count blocks from 0")
    width, S = config.width(model.config), config.n_shared
    one, shared = (replace(model.config, n_hidden=max(1, n) * width) for n in (1, S))
    for i in chosen:
        experts = [SwiGLU(one) for _ in range(config.n_experts)]
        moe = MoE(config, C, experts, SwiGLU(shared) if S else None)
        for name, weight in moe.named_parameters():
            small = "down_proj" in name  # as a dense layer's, see GPT
            nn.init.normal_(weight, std=0.02 / (2 * L) ** 0.5 if small else 0.02)
        like = model.embed_tokens.weight
        model.layers[i].mlp = moe.to(like.device, like.dtype)
    return model


def moe_layers(model: nn.Module) -> list[MoE]:
    """The layers of experts of a model, from below.

    >>> moe_layers(nn.Linear(2, 2))
    []
    """
    return [module for module in model.modules() if isinstance(module, MoE)]


def nudge_biases(model: nn.Module, rate: float = 1e-3) -> None:
    """Nudge every router's bias by the load of the last batch; once after each step.

    As in ``Trainer(..., on_step=lambda trainer: nudge_biases(trainer.model))``. The
    biases are in the state dict, so checkpoints keep them. In bfloat16 a small step
    would be lost; train in float32.
    """
    for layer in moe_layers(model):
        if layer.routing is not None:
            nudge(layer.bias, layer.routing.load, rate)
