r"""Distillation: a small model learns from what a large one says, or would have said.

A label is one token. A teacher says of every token how likely it is, and the wrong ones
that it finds likely tell what it knows. Three ways of learning from it:

- **hard**: the teacher writes, the student imitates: next-token loss on its text. Needs
  nothing but the text (``sequence-level``).
- **soft**: at each position, the divergence between both distributions, made flatter by
  a temperature,

  .. math:: L = \tau^2 \, KL(p_T^{(\tau)} \| p_S^{(\tau)}), \qquad
            p^{(\tau)} = softmax(z / \tau)

  Gradients of the softened divergence shrink like :math:`1 / \tau^2`, which the factor
  undoes; without it, to change the temperature is to change the learning rate.
- **on-policy**: the same divergence on text that the *student* wrote. Trained on the
  teacher's text alone, it never sees its own mistakes and how to go on from them.

Which divergence? Forward KL(teacher || student) makes the student cover all that the
teacher might say; reverse KL(student || teacher) makes it avoid what the teacher would
not say. The generalised Jensen-Shannon divergence lies between, with
:math:`m = \beta p_T + (1 - \beta) p_S`:

.. math:: D_\beta = \beta \, KL(p_T \| m) + (1 - \beta) \, KL(p_S \| m)

Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Kim and Rush 2016 (1606.07947)
for sequences; Agarwal et al. 2023 (GKD, 2306.13649), equations 1 and 3.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minillm.errors import require, require_mask, require_positive


def kd_loss(
    student: Float[Tensor, "B T V"],
    teacher: Float[Tensor, "B T V"],
    mask: Bool[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Soft distillation: mean of tau^2 KL(teacher || student) over the positions.

    Args:
        student: logits, with a gradient.
        teacher: logits for the same positions; no gradient reaches it.
        mask: True where the student is to learn; everywhere if not given. A position
            is where a token is *predicted*: for targets, pass ``mask[:, 1:]`` with
            ``logits[:, :-1]``.
        temperature: tau, of both.

    Raises:
        ValueError: shapes that differ (two vocabularies?), nothing to learn from, a
            temperature that is not positive.

    >>> uniform, sure = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -torch.inf]]])
    >>> kd_loss(uniform, sure)   # ln 2
    tensor(0.6931)
    """
    require_positive(temperature=temperature)
    T, S = _learned_from(teacher.detach(), student, mask, temperature)
    return temperature**2 * kl(T, S).mean()


def gkd_loss(
    student: Float[Tensor, "B T V"],
    teacher: Float[Tensor, "B T V"],
    mask: Bool[Tensor, "B T"] | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Generalised JSD between teacher and student, on whosever text.

    Args:
        student, teacher, mask, temperature: of ``kd_loss``.
        beta: the teacher's part of the mixture. 0 stands for forward KL and 1 for
            reverse KL, to which :math:`D_\beta / \beta` and
            :math:`D_\beta / (1 - \beta)` tend; the formula itself is 0 at both ends.

    Raises:
        ValueError: a beta outside 0..1, as ``kd_loss``.

    Differs from ``kd_loss``: no factor tau^2, as in the paper and in TRL.

    >>> one, other = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    >>> gkd_loss(one, other, beta=0.5) == gkd_loss(other, one, beta=0.5)
    tensor(True)
    """
    require_positive(temperature=temperature)
    require(0 <= beta <= 1, "beta", beta, "in 0..1", "0.5 is the symmetric one")
    T, S = _learned_from(teacher.detach(), student, mask, temperature)
    if beta in (0, 1):
        return (kl(T, S) if beta == 0 else kl(S, T)).mean()
    m = torch.stack([T + math.log(beta), S + math.log(1 - beta)]).logsumexp(0)
    return (beta * kl(T, m) + (1 - beta) * kl(S, m)).mean()


def kl(p: Float[Tensor, "... V"], q: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(p || q) of log-probs; a token that p cannot say adds nothing.

    >>> kl(torch.tensor([0.0, -torch.inf]), torch.tensor([0.5, 0.5]).log())
    tensor(0.6931)
    """
    impossible = p == -torch.inf
    difference = (p - q).masked_fill(impossible, 0.0)  # 0 times inf is NaN
    return (p.exp() * difference).sum(-1)


def _learned_from(
    teacher: Tensor, student: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"]]:
    """Log-probs of both where the student is to learn; the rest may be anything."""
    same, need = teacher.shape == student.shape, f"of shape {tuple(student.shape)}"
    remedy = "teacher and student need one vocabulary and one text"
    require(same, "teacher", teacher, need, remedy)
    require_mask(mask, tuple(student.shape[:-1]))
    if mask is not None:
        teacher, student = teacher[mask], student[mask]
    n, remedy = student.numel(), "mark where the student is to learn"
    require(n > 0, "mask", n, "True somewhere", remedy)
    T, S = ((z / temperature).log_softmax(-1) for z in (teacher, student))
    return T, S
