r"""Preferences on what the model says now: iterative DPO, online DPO, SPIN.

Three loops around the same loss, which differ in how fresh the pairs are and in who
orders them:

    dpo         pairs of the past, once                            ``prefer``
    iterative   rounds: respond, have it judged, train             a few rounds
    online      every step on pairs of its own                     always on policy
    spin        rounds: a demonstration against its own response   no judge at all

With an AI as judge, the first two are RLAIF. More rounds do not mean better: whatever
the judge gets wrong, the policy finds, and the fresher the pairs, the sooner.

SPIN's opponent is the model of the last round, and the reference, too. At the start of
a round its expected gradient is that of SFT times beta / 2, because the policy's own
responses add nothing in the mean:

.. math:: E_{y \sim \pi}[\nabla \log \pi(y)] = 0

So it ends where its responses look like the demonstrations. It cannot become better
than they are.

Source: Xu et al., arXiv:2312.16682 (iterative); Guo et al., arXiv:2402.04792 (online,
with AI feedback); Chen et al., arXiv:2401.01335 (SPIN), algorithm 1.
"""

from collections.abc import Sequence

from minillm.alignment.own_responses import (
    Ask,
    Compare,
    against_own,
    as_rows,
    ask_model,
    judged_pairs,
    require_other,
)
from minillm.alignment.preference_data import PairBatch, PreferencePairs, Row
from minillm.alignment.preference_loop import (
    Loss,
    PreferConfig,
    adamw,
    dpo,
    follow,
    prefer,
)
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.model import GPT
from minillm.training import MetricsLog
from minillm.world.instructions import Instruction


def iterative_dpo(
    model: GPT,
    ref: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    judge: Compare,
    config: PreferConfig,
    rounds: int = 3,
    ask: Ask | None = None,
    loss: Loss = dpo,
    progress: bool = True,
) -> list[MetricsLog]:
    """Rounds of responding to all instructions, judging, and training on the pairs.

    Args:
        model: the policy; it is changed.
        ref: frozen, a model of its own; the same in all rounds, so that beta holds the
            policy to where it began and not to where it was last.
        tokenizer: the model's own.
        instructions: what to respond to, all in each round.
        judge: (question, first, second) -> "first", "second" or "tie".
        config: of ``prefer``, for one round.
        rounds: how many.
        ask: how the model is asked; ask.B pairs in a batch of training.
        loss, progress: of ``prefer``.

    Returns:
        a log for each round.

    Raises:
        ValueError: a reference that shares weights with the model, a judge who never
            decides.
    """
    require_other(model, ref)
    require_count(rounds=rounds)
    ask, logs = ask or Ask(), []
    dice = ask.dice()
    for number in range(rounds):
        rows = []
        for first in range(0, len(instructions), ask.B):
            some = instructions[first : first + ask.B]
            rows += judged_pairs(model, tokenizer, some, judge, ask, dice)
        pairs = _pairs(rows, model, tokenizer, ask.B, seed=number)
        logs.append(prefer(model, ref, pairs, config, loss, progress))
    return logs


def online_dpo(
    model: GPT,
    ref: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    judge: Compare,
    config: PreferConfig,
    ask: Ask | None = None,
    loss: Loss = dpo,
    progress: bool = True,
) -> MetricsLog:
    """Respond, have it judged, take one step: no pair is seen twice.

    Args:
        model, ref, tokenizer, instructions, judge: of ``iterative_dpo``.
        config: of ``prefer``; a step is a batch of fresh pairs.
        ask: how the model is asked: ask.B instructions a step.
        loss, progress: of ``prefer``.

    Returns:
        as ``prefer``; and ``pairs``, how many of ask.B the judge decided.

    Raises:
        ValueError: a reference that shares weights with the model, a judge who never
            decides.
    """
    require_other(model, ref)
    ask, found = ask or Ask(), {}
    dice, n = ask.dice(), len(instructions)

    def batch(step: int) -> PairBatch:
        start = step * ask.B
        some = [instructions[i % n] for i in range(start, start + ask.B)]
        rows, tries = [], 0
        while not rows and tries < 10:  # ties only are bad luck, or a useless judge
            rows = judged_pairs(model, tokenizer, some, judge, ask, dice)
            tries += 1
        found["pairs"] = len(rows)
        pairs = _pairs(rows, model, tokenizer, len(rows))
        return pairs.with_reference(ref)[0]

    return follow(model, adamw(model), batch, config, loss, progress, lambda _: found)


def spin(
    model: GPT,
    tokenizer: Tokenizer,
    instructions: Sequence[Instruction],
    config: PreferConfig,
    rounds: int = 2,
    ask: Ask | None = None,
    progress: bool = True,
) -> list[MetricsLog]:
    """Rounds in which good responses play against the model's own.

    Args:
        model: fine-tuned on such responses; it is changed.
        tokenizer, config, ask, progress: of ``iterative_dpo``.
        instructions: with good responses, the demonstrations.
        rounds: in each, the model of the round before is opponent and reference.

    Returns:
        a log for each round.

    Raises:
        ValueError: a model that says nothing else than the demonstrations.
    """
    require_count(rounds=rounds)
    ask, logs = ask or Ask(), []
    dice = ask.dice()
    for number in range(rounds):
        rows = []
        for first in range(0, len(instructions), ask.B):
            some = instructions[first : first + ask.B]
            said = as_rows(ask_model(model, tokenizer, some, ask, dice))
            rows += against_own(tokenizer, some, said)
        pairs = _pairs(rows, model, tokenizer, ask.B, seed=number)
        # Asked and scored before it is trained, the model is its own opponent.
        logs.append(prefer(model, model, pairs, config, progress=progress))
    return logs


def _pairs(
    rows: list[Row], model: GPT, tokenizer: Tokenizer, B: int, seed: int = 0
) -> PreferencePairs:
    remedy = "ask for more, draw hotter, or look at who judges"
    require(len(rows) > 0, "pairs", len(rows), "at least 1 that is no tie", remedy)
    return PreferencePairs(rows, model.config.context, B, tokenizer.pad, seed)
