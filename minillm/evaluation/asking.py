r"""What does it answer, is that right, and how sure is it?

A prompt is given, the model goes on greedily, and the truth is known. The model's
confidence is the probability that it gave to all of what it said:

.. math:: confidence = \prod_t p(answer_t \mid prompt, answer_{<t})

A model is *calibrated* if, of all answers given with confidence c, the part c is right.
The expected calibration error is the mean distance from that, over bins of answers of
like confidence,

.. math:: ECE = \sum_b \frac{n_b}{N} \left| accuracy_b - confidence_b \right|

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
Differs from the paper: bins hold equally many answers, not equal ranges of confidence,
because nearly all answers are given with confidence near one.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.data import Tokenizer
from minillm.errors import require, require_count
from minillm.evaluation.perplexity import token_logprobs
from minillm.model import GPT, GREEDY, generate
from minillm.model.generation import Generation
from minillm.model.layers import at_least_float32
from minillm.world.questions import Question, verify


@dataclass(frozen=True)
class Answer:
    """What a model said to a question.

    Args:
        question: with the true answer.
        text: what was said, without the end-of-text token.
        confidence: the probability that the model gave to saying it.
    """

    question: Question
    text: str
    confidence: float

    @property
    def right(self) -> bool:
        """Whether it is the answer."""
        return verify(self.question, self.text)


def ask(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    max_new_tokens: int = 32,
    B: int = 64,
) -> list[Answer]:
    """Let a model go on from each question's prompt, greedily, until the document ends.

    Args:
        model: a language model of the world's documents.
        tokenizer: its tokenizer.
        questions: what to ask.
        max_new_tokens: where to stop at last.
        B: questions at a time.

    Raises:
        ValueError: prompts too long for the context, a B that is no count.

    >>> from minillm.model import GPTConfig
    >>> from minillm.world.questions import arithmetic_question
    >>> model = GPT(GPTConfig(vocab_size=260, n_layer=1, n_head=2, n_embd=16))
    >>> sums = [arithmetic_question(a, "+", a) for a in range(10)]
    >>> accuracy(ask(model, Tokenizer(merges=()), sums, max_new_tokens=3))
    0.0
    """
    require_count(B=B)
    prompts = [[tokenizer.eot, *tokenizer.encode(q.prompt)] for q in questions]
    answers: dict[int, Answer] = {}
    # The longest first: if one is too long, it is refused before the work is done.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), B):
        part = order[start : start + B]
        rows, stop = [prompts[i] for i in part], tokenizer.eot
        written = generate(
            model, rows, max_new_tokens, GREEDY, stop, generator=torch.Generator()
        )
        said = completion_logprobs(model, written).exp().tolist()
        for i, ids, confidence in zip(part, written.completions(), said, strict=True):
            text = tokenizer.decode(id_ for id_ in ids if id_ != tokenizer.eot)
            answers[i] = Answer(questions[i], text, confidence)
    return [answers[i] for i in range(len(prompts))]


@torch.no_grad()
def completion_logprobs(model: GPT, written: Generation) -> Float[Tensor, " B"]:
    """The log-probability of each completion given its prompt, from one more pass.

    Scored by the model's own distribution, whatever it was sampled with.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> completion_logprobs(model, generate(model, [[1, 2], [3]], 4)).shape
    torch.Size([2])
    """
    logits = at_least_float32(model(written.tokens, written.mask))
    logprobs = token_logprobs(logits, written.tokens)
    new = written.mask[:, 1:].clone()
    new[:, : written.prompt_length - 1] = False
    return torch.where(new, logprobs, 0.0).sum(dim=1)  # padding may score -inf


def accuracy(answers: Sequence[Answer]) -> float:
    """The part of the answers that is right; not a number if there are none.

    >>> question = Question("Compute 1+2=", "3", "arithmetic")
    >>> accuracy([Answer(question, "3.", 0.75), Answer(question, "4.", 0.25)])
    0.5
    """
    return fmean(a.right for a in answers) if answers else math.nan


def confidence(answers: Sequence[Answer]) -> float:
    """The mean confidence of the answers; not a number if there are none.

    >>> question = Question("Compute 1+2=", "3", "arithmetic")
    >>> confidence([Answer(question, "3.", 0.75), Answer(question, "4.", 0.25)])
    0.5
    """
    return fmean(a.confidence for a in answers) if answers else math.nan


def reliability(
    confidences: Sequence[float], right: Sequence[bool], bins: int = 8
) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and count of each bin, the least confident first.

    Args:
        confidences: in 0..1.
        right: whether each answer was right.
        bins: how many at most; each holds equally many answers, but for rounding and
            for answers of equal confidence, which are never parted. (In which order
            would they be? By chance, those that are right might come first.)

    Raises:
        ValueError: no answers, lists of unequal lengths, confidences outside 0..1.

    >>> reliability([1.0, 0.25, 0.5, 0.0], [True, False, False, False], bins=2)
    [(0.125, 0.0, 2), (0.75, 0.5, 2)]
    """
    require_count(bins=bins)
    n, m, need = len(confidences), len(right), "as many as confidences and at least one"
    require(n == m > 0, "right", f"{m} for {n}", need, "give one for each answer")
    inside, remedy = all(0 <= c <= 1 for c in confidences), "exponentiate logprobs"
    require(inside, "confidences", confidences, "in 0..1", remedy)
    pairs = sorted(zip(confidences, right, strict=True))
    sure = [c for c, _ in pairs]
    cuts = {bisect_left(sure, sure[b * n // bins]) for b in range(bins)}
    parts = [pairs[a:b] for a, b in pairwise([*sorted(cuts), n])]
    return [
        (fmean(c for c, _ in part), fmean(r for _, r in part), len(part))
        for part in parts
    ]


def calibration_error(
    confidences: Sequence[float], right: Sequence[bool], bins: int = 8
) -> float:
    """The expected calibration error: 0 if confidence says how often one is right.

    In a finite sample chance alone makes it positive, the more so the smaller the bins:
    by at most sqrt(accuracy (1 - accuracy) / n_b) a bin in the mean.

    >>> calibration_error([1.0, 1.0, 1.0, 1.0], [True, True, True, False])
    0.25
    """
    found = reliability(confidences, right, bins)
    return sum(n * abs(right - sure) for sure, right, n in found) / len(confidences)
