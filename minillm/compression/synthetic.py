r"""Synthetic data that has been verified: keep what a model gets right, and learn that.

A student fits the mixture that it reads. Trained on all that a teacher says it learns
the errors at the teacher's rate, and no amount of text outvotes them. Where a program
can check responses, errors are not learned because they are not there:

    draw n a prompt  ->  keep the right ones  ->  drop copies  ->  at most m a prompt

What is left is the teacher's distribution, given that it is right, as long as copies
are kept; once they are dropped, an even one over what it said. **Dropping copies is no
substitute for checking**: where right answers are few and often repeated, and errors
many and different, it makes the share of errors larger. A verifier that passes a share
f of the wrong ones leaves (1 - p) f of them beside p right ones. At most m a prompt
keeps easy prompts, where nearly every draw is right, from crowding out hard ones.

If a draw is right with probability p, k of them hold a right one with

.. math:: pass@k = 1 - (1 - p)^k, \qquad
          \widehat{pass@k} = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

of which the right side is the estimate from c right ones of n: the share of the ways to
choose k of the n that hold one. It is unbiased; 1 - (1 - c/n)^k is too low.

Source: Zelikman et al. 2022 (STaR, arXiv:2203.14465); Yuan et al. 2023 (rejection
sampling fine-tuning, 2308.01825); pass@k: Chen et al. 2021 (2107.03374),
equation 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.model import GPT, Sampling, generate


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate from ``c`` right draws of ``n`` that ``k`` draws hold a right one.

    Raises:
        ValueError: k outside 1..n, c outside 0..n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    whole, remedy = all(type(x) is int for x in (n, c, k)), "draw more or ask for less"
    fine = whole and 0 <= c <= n and 1 <= k <= n
    require(fine, "(n, c, k)", (n, c, k), "ints: 0 <= c <= n, 1 <= k <= n", remedy)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def expected_pass(p: float, k: int) -> float:
    """1 - (1 - p)^k: how often ``k`` draws hold a right one; precise for small p.

    Raises:
        ValueError: a p outside 0..1, a k that is no count.

    >>> expected_pass(0.5, k=2)
    0.75
    """
    require(0 <= p <= 1, "p", p, "in 0..1", "give a probability")
    require_count(k=k)
    return -math.expm1(k * math.log1p(-p)) if p < 1 else 1.0


def sample_responses(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """Let a model continue each prompt ``n`` times, until it ends the text.

    Args:
        model: whose ``tokenizer`` it is.
        prompts: texts, none empty.
        n: draws a prompt.
        max_new_tokens, sampling, generator: of ``generate``.

    Raises:
        ValueError: an n that is no count, or as ``generate``.

    >>> from minillm.model import GPTConfig
    >>> tokenizer = Tokenizer(merges=())
    >>> model = GPT(GPTConfig(260, n_layer=1, n_head=2, n_embd=16))
    >>> said = sample_responses(model, tokenizer, ["1+1=", "a"], 3, max_new_tokens=2)
    >>> [len(texts) for texts in said]
    [3, 3]
    """
    require_count(n=n)
    ids = [tokenizer.encode(prompt) for prompt in prompts for _ in range(n)]
    marks = {"stop": tokenizer.eot, "pad": tokenizer.pad, "generator": generator}
    rows = generate(model, ids, max_new_tokens, sampling, **marks).completions()
    texts = [tokenizer.decode(i for i in row if i != tokenizer.eot) for row in rows]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


@dataclass(frozen=True)
class Sifted:
    """What was kept, and what came of each prompt.

    Args:
        pairs: prompt and response, to be learned; see ``finetuning.sft_examples``.
        drawn: n, responses of each prompt.
        right: c, those that were verified, copies included.
    """

    pairs: list[tuple[object, str]]
    drawn: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def kept(self) -> float:
        """The yield: pairs for each response that was paid for."""
        return len(self.pairs) / sum(self.drawn)

    def pass_at(self, k: int) -> float:
        """Mean of ``pass_at_k`` over prompts; at k = 1 the share that was right."""
        both = zip(self.drawn, self.right, strict=True)
        return fmean(pass_at_k(n, c, k) for n, c in both)


def sift(
    prompts: Sequence[object],
    responses: Sequence[Sequence[str]],
    verify: Callable[[object, str], bool],
    most: int,
) -> Sifted:
    """Verify responses, drop copies, and keep the first ``most`` of each prompt.

    Args:
        prompts: texts, or questions; whatever ``verify`` understands.
        responses: of each prompt, in the order of drawing.
        verify: is this response to this prompt right? ``world.questions.verify``.
        most: pairs a prompt, at most.

    Raises:
        ValueError: unequal lengths, no prompt, one without responses, no such ``most``.

    >>> found = sift(["1+1="], [["2", "3", "2"]], lambda _, text: text == "2", most=4)
    >>> found.pairs, found.right, round(found.kept, 2)
    ([('1+1=', '2')], (2,), 0.33)
    """
    n, drawn = len(prompts), tuple(map(len, responses))
    fine = len(drawn) == n > 0 and all(drawn)
    remedy = "draw at least one for each prompt"
    require(fine, "responses", drawn, f"for each of {n} prompts some", remedy)
    require_count(most=most)
    pairs, right = [], []
    for prompt, texts in zip(prompts, responses, strict=True):
        good = [text for text in texts if verify(prompt, text)]
        right.append(len(good))
        pairs += [(prompt, text) for text in list(dict.fromkeys(good))[:most]]
    return Sifted(pairs, drawn, tuple(right))
