r"""Forgetting, and four ways to hold on to what was known.

Fine-tuned on something new, a model gets worse at what it could do before, because the
same weights did both. What helps is always a term that remembers, and the four differ
in what they remember:

- **L2-SP**: the weights, all alike: :math:`\frac{\lambda}{2} \|\theta - \theta_0\|^2`.
  (Weight decay pulls to 0, which nobody was trained to be.)
- **EWC**: the weights, each by how much the old task depends on it,

  .. math:: \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta_{0,i})^2, \qquad
            F_i = E_{x, \, y \sim p_\theta} \left(
            \frac{\partial \ln p(y|x)}{\partial \theta_i} \right)^2

  F is the curvature of the KL divergence from the old model: a Taylor series of it.
- **KL**: what the model says, on any text: :math:`KL(p_{\theta_0} \| p_\theta)`.
- **replay**: the data; some rows of each batch are old ones.

In F, labels are *drawn from the model*. With those of the data it is the empirical
Fisher, which is small wherever the model fits well, however steep the valley is.

Source: Kirkpatrick et al. 2017 (EWC, arXiv:1612.00796), equation 3; Li et al. 2018
(L2-SP, 1802.01483), section 3.2; Kunstner et al. 2019 (1905.12558) on the two Fishers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minillm.compression.distillation import kd_loss
from minillm.data.batches import Batch, hash_of
from minillm.errors import require
from minillm.evaluation.perplexity import token_logprobs
from minillm.model import GPT

Named = dict[str, Tensor]


def anchor(model: nn.Module) -> Named:
    """Copies of all that is trained, to be held on to.

    >>> list(anchor(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    named = model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


def l2_sp(model: nn.Module, start: Named) -> Float[Tensor, ""]:
    """Half the squared distance from where training began; multiply by lambda.

    Args:
        model: that is trained.
        start: of ``anchor``.

    Raises:
        ValueError: an anchor of another model.

    >>> layer = nn.Linear(2, 1)
    >>> start = anchor(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(2.0)
    >>> l2_sp(layer, start)
    tensor(2., grad_fn=<DivBackward0>)
    """
    ones = {n: torch.ones((), device=t.device) for n, t in start.items()}
    return ewc(model, start, ones)


def ewc(model: nn.Module, start: Named, fisher: Named) -> Float[Tensor, ""]:
    """Half the squared distance, each weight by its Fisher information.

    Args:
        model: that is trained.
        start: of ``anchor``, before training.
        fisher: of ``fisher_information``, on the old task.

    Raises:
        ValueError: an anchor or a Fisher of another model.

    >>> layer = nn.Linear(2, 1)
    >>> ewc(layer, anchor(layer), anchor(layer)).item()
    0.0
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    same = set(named) == set(start) <= set(fisher)
    remedy = "take anchor and Fisher of this model, with the same weights frozen"
    require(same, "start", f"{len(start)} tensors", f"of {len(named)}", remedy)
    parts = [(fisher[n] * (p - start[n]).square()).sum() for n, p in named.items()]
    return torch.stack(parts).sum() / 2


def fisher_information(
    model: GPT,
    rows: Iterable[Int[Tensor, " T"]],
    empirical: bool = False,
    generator: torch.Generator | None = None,
) -> Named:
    """How much each weight matters to what the model says about some texts.

    Args:
        model: before it learns something new; unchanged.
        rows: texts of the old task, one by one, since the square of a mean of
            gradients is not the mean of their squares.
        empirical: take the tokens of the text as labels instead of drawing them.
        generator: source of randomness, for draws that can be repeated.

    Returns:
        the mean over rows, by name.

    Raises:
        ValueError: no row.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> fisher = fisher_information(model, [torch.arange(5)])
    >>> all((f >= 0).all() for f in fisher.values())
    True
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total, n = {name: torch.zeros_like(p) for name, p in named.items()}, 0
    for row in rows:
        logits = model(row[None])
        logprobs = token_logprobs(logits, row[None])
        if not empirical:
            p = logits[0, :-1].detach().softmax(-1)
            drawn = p.multinomial(1, generator=generator)
            logprobs = logits[0, :-1].log_softmax(-1).gather(-1, drawn)
        grads = torch.autograd.grad(logprobs.sum(), named.values())
        for name, grad in zip(named, grads, strict=True):
            total[name] += grad.square()
        n += 1
    require(n > 0, "rows", n, "at least 1", "give some text of the old task")
    return {name: t / n for name, t in total.items()}


def kl_to_base(
    logits: Float[Tensor, "B T V"],
    base_logits: Float[Tensor, "B T V"],
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Mean KL(base || model), in nats a position: do not say what it did not say.

    It is distillation with the model's own past as the teacher.

    >>> kl_to_base(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    tensor(0.)
    """
    return kd_loss(logits, base_logits, mask)


@dataclass(frozen=True)
class Replay:
    """Batches of a new task with some rows of the old one in each.

    Args:
        new, old: ``batches[step] -> Batch`` of equal width.
        every: of each ``every`` rows one is old: 5 is a fifth.

    Raises:
        ValueError: fewer than 2; batches of another width, or too few old rows.

    >>> from minillm.data.batches import Windows
    >>> new, old = (Windows(torch.full((99,), i), T=5, B=4) for i in (0, 1))
    >>> Replay(new, old, every=2)[0].tokens[:, 0]
    tensor([1, 0, 1, 0])
    """

    new: object
    old: object
    every: int = 5

    def __post_init__(self) -> None:
        whole = type(self.every) is int and self.every > 1
        remedy = "5 replaces a fifth of the rows"
        require(whole, "every", self.every, "an int of at least 2", remedy)

    @property
    def fingerprint(self) -> str:
        """A hash of what decides the batches; checkpoints keep it."""
        return hash_of((self.new.fingerprint, self.old.fingerprint, self.every))

    def __getitem__(self, step: int) -> Batch:
        new, old = self.new[step], self.old[step]
        same = new.tokens.shape[1] == old.tokens.shape[1]
        need, remedy = f"{new.tokens.shape[1]} wide", "give both the same T"
        require(same, "old", old.tokens, need, remedy)
        places = slice(None, None, self.every)
        n = len(new.tokens[places])
        require(len(old.tokens) >= n, "old", old.tokens, f"{n} rows", "enlarge its B")
        tokens, mask = new.tokens.clone(), new.mask.clone()
        tokens[places], mask[places] = old.tokens[:n], old.mask[:n]
        return Batch(tokens, mask)
