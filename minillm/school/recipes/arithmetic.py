"""A small model that gets sums right half of the time, for rewards that are verified.

It was shown sums of a number below 100 and a digit, with their answers, and taken away
from its lessons early. What is left to learn can be learned from verdicts alone,
because what is right is often said. A fifth of the sums was never shown; whoever is
right about those has learned to add.

The stop token is the full stop, so a rollout is an answer and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

import torch
from torch import Tensor

from minillm.alignment.rollouts import sample_rollouts
from minillm.alignment.verifiers import verifier_reward
from minillm.data import Tokenizer
from minillm.errors import require
from minillm.model import GPT, GPTConfig
from minillm.training.losses import next_token_loss
from minillm.training.optimizers import build_optimizers
from minillm.world import WorldConfig
from minillm.world.questions import Question, arithmetic_question

LONGEST = 4  # tokens of an answer: three digits and the full stop
HELD_OUT = 200
PATIENCE, EVERY, ASKED = 2000, 5, 400  # steps at most, between two looks, sums a look


def sums(held_out: bool = False) -> list[Question]:
    """All sums of a number below 100 and a digit that are shown, or all held-out ones.

    >>> len(sums()), len(sums(held_out=True)), sums()[0].kind
    (800, 200, 'arithmetic')
    """
    found = [arithmetic_question(a, "+", b) for a in range(100) for b in range(10)]
    Random("sums").shuffle(found)
    return found[:HELD_OUT] if held_out else found[HELD_OUT:]


def stop_token(tokenizer: Tokenizer) -> int:
    """The full stop."""
    return tokenizer.encode(".")[0]


def sampled_accuracy(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    copies: int = 1,
    seed: int = 0,
) -> float:
    """The part of sampled answers that is right.

    Args:
        model: which is asked; not changed.
        tokenizer: its own.
        questions: what is asked.
        copies: answers to each.
        seed: of the draws.
    """
    asked, dice = [*questions] * copies, torch.Generator().manual_seed(seed)
    prompts = [tokenizer.encode(question.prompt) for question in asked]
    marks = {"stop": stop_token(tokenizer), "pad": tokenizer.pad, "generator": dice}
    rollouts = sample_rollouts(model, prompts, LONGEST, **marks)
    return fmean(verifier_reward(asked, tokenizer)(range(len(asked)), rollouts))


@dataclass(frozen=True)
class Arithmetic:
    """What the model is, and when its lessons end.

    Args:
        until: sampled accuracy, on sums that it was shown, at which they do.
        B: sums in a batch.
        n_layer, n_head, n_embd: of the model.
        lr, matrix_lr: of AdamW and of Muon.
        seed: of weights and order.
    """

    until: float = 0.6
    B: int = 128
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    lr: float = 2e-3
    matrix_lr: float = 1e-2
    seed: int = 0

    @property
    def world(self) -> WorldConfig:
        """Sums are the same in all worlds."""
        return WorldConfig()

    def train(self, load: Callable, progress: bool) -> tuple[GPT, Tokenizer]:
        """Show sums until enough answers are right.

        Args:
            load: what fetches other models of the zoo; this one needs none.
            progress: not shown; it takes seconds.

        Raises:
            ValueError: an accuracy that was not reached.
        """
        tokenizer = Tokenizer.train("Compute 1+1=2. " * 9, vocab_size=266)
        torch.manual_seed(self.seed)
        shape = (tokenizer.vocab_size, self.n_layer, self.n_head)
        model = GPT(GPTConfig(*shape, n_embd=self.n_embd, context=16))
        rates = {"lr": self.lr, "matrix_lr": self.matrix_lr, "weight_decay": 0.0}
        optimizers = build_optimizers(model, "muon", **rates)
        shown, dice, right = sums(), Random(self.seed), 0.0
        for step in range(PATIENCE):
            tokens, mask = lesson(tokenizer, dice.choices(shown, k=self.B))
            model.zero_grad()
            next_token_loss(model(tokens), tokens, mask).backward()
            for optimizer in optimizers:
                optimizer.step()
            if step % EVERY == EVERY - 1:
                right = sampled_accuracy(model, tokenizer, shown[:ASKED], seed=step)
            if right >= self.until:
                break
        need = f"reached in {PATIENCE} steps"
        require(right >= self.until, "until", self.until, need, f"ask for {right:g}")
        return model, tokenizer


def lesson(tokenizer: Tokenizer, shown: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Sums with their answers, padded on the right; the answers are the targets.

    >>> tokens, mask = lesson(Tokenizer(merges=()), sums()[:2])
    >>> tokens.shape == mask.shape, bool(mask[:, 0].any())
    (True, False)
    """
    prompts = [tokenizer.encode(question.prompt) for question in shown]
    answers = [tokenizer.encode(f"{question.answer}.") for question in shown]
    T = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(shown), T), tokenizer.pad)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        tokens[i, : len(p) + len(a)] = torch.tensor(p + a)
        mask[i, len(p) : len(p) + len(a)] = True
    return tokens, mask
