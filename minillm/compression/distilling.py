r"""Distillation as training: whose text is read, and what is learned from it.

Three choices make all the methods. *Who wrote the text?* The teacher (or people), once
and beforehand; or the student, anew at each step, since only there it meets its own
mistakes. *What is learned at each token?* The token itself (hard), or the teacher's
whole distribution (soft). *By which divergence?* See ``distillation``.

.. math:: L = (1 - \lambda) \, E_{y \sim data} \, D(p_T \| p_S)(y \mid x) +
              \lambda \, E_{y \sim p_S} \, D(p_T \| p_S)(y \mid x)

No gradient passes through the sampling: the student is told what would have been better
where it is, and not to avoid going there. That would be reinforcement learning.

Source: Agarwal et al. 2023 (GKD, arXiv:2306.13649), algorithm 1; Kim and Rush 2016
(1606.07947), section 3.2, for hard distillation of sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.compression.distillation import gkd_loss
from minillm.errors import require
from minillm.model import GPT, generate
from minillm.training import TrainConfig, minimise, next_token_loss


@dataclass(frozen=True)
class Text:
    """Prompts and what followed.

    Args:
        prompts: lists of ids.
        tokens: prompts, padded on the left; what follows, padded on the right.
        real: True at tokens that are no padding.
        said: True at tokens that follow a prompt; these are learned from.
    """

    prompts: Sequence[Sequence[int]]
    tokens: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"]
    said: Bool[Tensor, "B T"]


def write(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
) -> Text:
    """Let a model continue prompts, by drawing from its own distribution.

    Raises:
        ValueError: as ``generate``.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> write(model, [[1, 2], [3]], max_new_tokens=2).said.int()
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    marks = {"stop": stop, "pad": pad, "generator": generator}
    made = generate(model, prompts, max_new_tokens, **marks)
    said = made.mask.clone()
    said[:, : made.prompt_length] = False
    return Text(prompts, made.tokens, made.mask, said)


def hard_loss(student: GPT, text: Text) -> Float[Tensor, ""]:
    """Next-token loss on what the teacher said."""
    return next_token_loss(student(text.tokens, text.real), text.tokens, text.said)


def soft_loss(
    student: GPT, teacher: GPT, text: Text, divergence: Callable = gkd_loss
) -> Float[Tensor, ""]:
    """Divergence of the distributions of each token that was said, whoever said it.

    Args:
        student, teacher: of one vocabulary.
        text: read by both.
        divergence: ``kd_loss`` or ``gkd_loss``, perhaps with settings by a ``partial``.

    Raises:
        ValueError: as the divergence.
    """
    with torch.no_grad():
        told = teacher(text.tokens, text.real)[:, :-1]
    logits = student(text.tokens, text.real)[:, :-1]
    return divergence(logits, told, text.said[:, 1:])


def distil(
    student: GPT,
    teacher: GPT,
    texts: Callable[[int], Text],
    config: TrainConfig,
    divergence: Callable = gkd_loss,
    own: float = 0.0,
    max_new_tokens: int = 32,
    stop: int | None = None,
    pad: int = 0,
    seed: int = 0,
) -> list[float]:
    """Train a student on what a teacher thinks of a text.

    For hard distillation, where the teacher is not asked again:
    ``minimise(student, lambda step: hard_loss(student, texts(step)), config)``.

    Args:
        student: changed in place.
        teacher: in evaluation mode afterwards.
        texts: for each step, prompts with what the teacher or somebody else said.
        config: of ``minimise``.
        divergence: of ``soft_loss``.
        own: lambda, the share of steps at which the student writes to the prompts.
        max_new_tokens, stop, pad: of what it writes.
        seed: of its draws.

    Returns:
        the loss of each step.

    Raises:
        ValueError: a share outside 0..1, student and teacher one object, as ``write``.
    """
    require(0 <= own <= 1, "own", own, "in 0..1", "1 is on-policy throughout")
    same, remedy = student is teacher, "nobody learns from itself; copy.deepcopy one"
    require(not same, "teacher", "the student", "another model", remedy)
    dice = torch.Generator(student.embed_tokens.weight.device).manual_seed(seed)
    teacher.eval()

    def loss(step: int) -> Float[Tensor, ""]:
        text = texts(step)
        if torch.rand(1, generator=dice, device=dice.device) < own:
            text = write(student, text.prompts, max_new_tokens, stop, pad, dice)
        return soft_loss(student, teacher, text, divergence)

    return minimise(student, loss, config)
