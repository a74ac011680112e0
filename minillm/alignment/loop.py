"""What PPO and GRPO have in common: sample, score, update a few times, begin again.

    for each step:
        rollouts = the policy's own responses to some prompts      rollouts.py
        rewards  = what they are worth                             verifiers.py, reward
        for each epoch, for each mini-batch:                       the same rollouts
            loss.backward(); clip_gradients(...); optimizer.step()

Here are the parts around it: which prompts, which rows, one update, and a loop that
shows a bar and can be stopped. Ctrl-C ends the loop after the step in hand, so that the
model is whole and keeps all that it has learned.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from minillm.alignment.logprobs import scored_logprobs
from minillm.alignment.masked import masked_mean
from minillm.alignment.rollouts import Rollouts
from minillm.errors import require
from minillm.model import GPT, Sampling
from minillm.training import MetricsLog, TrainingInterrupted, clip_gradients
from minillm.training.interrupt import deferred_interrupt

# (which prompt each row answers, rollouts) -> the reward of each row
Reward = Callable[[Sequence[int], Rollouts], Sequence[float]]


def repeat(
    step: Callable[[], dict[str, float]], steps: int, progress: bool = True
) -> MetricsLog:
    """Do ``steps`` steps and keep what each has measured.

    Args:
        step: does one step and returns its measurements, "reward" among them.
        steps: how many.
        progress: show a bar.

    Raises:
        TrainingInterrupted: Ctrl-C; the step in hand was finished first.

    >>> repeat(lambda: {"reward": 1.0}, steps=2, progress=False).column("step")
    [0, 1]
    """
    log = MetricsLog(None)
    bar = tqdm(total=steps, disable=not progress, unit="step")
    with bar, deferred_interrupt() as interrupted:
        for i in range(steps):
            record = {"step": i} | step()
            log.append(record)
            bar.set_postfix(reward=f"{record['reward']:.3f}", refresh=False)
            bar.update()
            if interrupted.is_set() and i + 1 < steps:
                done = f"stopped after step {i + 1} of {steps}"
                raise TrainingInterrupted(f"{done}; the model keeps what it learned")
    return log


def update(
    loss: Float[Tensor, ""],
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
) -> float:
    """One step downhill; return the norm of the first module's gradient, unclipped.

    Each module's gradient is clipped by itself: together, a loud critic would silence
    the policy.

    Raises:
        FloatingPointError: loss or gradient are no numbers; the weights are as before.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> update(3 * layer.weight.sum(), [layer], sgd, max_norm=10.0)
    3.0
    """
    optimizer.zero_grad()
    loss.backward()
    norms = [clip_gradients(module.parameters(), max_norm) for module in modules]
    if not all(map(math.isfinite, (loss.item(), *norms))):
        raise FloatingPointError(
            f"loss must stay finite, got {loss.item()} (gradient norms {norms}); lower "
            "the learning rate, or look for rewards that are far too large"
        )
    optimizer.step()
    return norms[0]


def minibatches(
    rows: Int[Tensor, " n"], size: int, generator: torch.Generator | None = None
) -> Iterator[Int[Tensor, " b"]]:
    """All rows once, in a random order, ``size`` at a time; nothing if there are none.

    >>> sorted(torch.cat(list(minibatches(torch.arange(5), 2))).tolist())
    [0, 1, 2, 3, 4]
    """
    order = torch.randperm(len(rows), generator=generator)
    return (rows[part] for part in order.split(size) if len(part))


def means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each measurement; nothing where nothing was measured.

    >>> means([{"loss": 1.0}, {"loss": 3.0}]), means([])
    ({'loss': 2.0}, {})
    """
    names = records[0] if records else ()
    return {name: fmean(record[name] for record in records) for name in names}


def select(rollouts: Rollouts, rows: Int[Tensor, " b"]) -> Rollouts:
    """Some rows of a batch of rollouts.

    >>> tokens = torch.tensor([[1, 2], [3, 4]])
    >>> acts = tokens == tokens[:, 1:]
    >>> rollouts = Rollouts(tokens, tokens > 0, acts, torch.ones(2, 1))
    >>> select(rollouts, torch.tensor([1])).tokens
    tensor([[3, 4]])
    """
    parts = ("tokens", "real", "actions", "logprobs")
    return replace(rollouts, **{name: getattr(rollouts, name)[rows] for name in parts})


def policy_logprobs(
    model: GPT, rollouts: Rollouts, sampling: Sampling
) -> tuple[Float[Tensor, "B T-1"], float]:
    r"""Log-probabilities of the tokens, with a gradient, and the policy's mean entropy.

    .. math:: H_t = -\sum_v p_{t,v} \ln p_{t,v}, \qquad in nats, averaged over actions

    A policy whose entropy goes to 0 has stopped trying things, and learns no more.

    >>> from minillm.alignment.rollouts import sample_rollouts
    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=2, n_embd=16))
    >>> rollouts = sample_rollouts(model, [[1, 2]], max_new_tokens=2)
    >>> logprobs, entropy = policy_logprobs(model, rollouts, Sampling())
    >>> logprobs.shape, round(entropy, 1)   # a new model is near ln 8
    (torch.Size([1, 3]), 2.1)
    """
    logits = model(rollouts.tokens, rollouts.real)
    entropies = token_entropies(logits.detach() / sampling.temperature)
    entropy = masked_mean(entropies, rollouts.actions[:, 1:]).item()
    parts = (rollouts.tokens, sampling, rollouts.real)
    return scored_logprobs(logits, *parts), entropy


@torch.no_grad()
def token_entropies(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T-1"]:
    """Entropy in nats of the distribution that each token but the first came from.

    >>> token_entropies(torch.zeros(1, 2, 4)).exp()
    tensor([[4.]])
    """
    logprobs = logits[:, :-1].log_softmax(-1)
    p = logprobs.exp()
    return -torch.where(p > 0, p * logprobs, 0.0).sum(-1)


def rewards_of(rewards: Iterable[float], rows: int) -> Float[Tensor, " B"]:
    """What a reward function returned, as a tensor.

    Raises:
        ValueError: another number of rewards than of rows, or one that is no number.

    >>> rewards_of([1.0, float("nan")], rows=2)
    Traceback (most recent call last):
    ValueError: rewards must be 2 finite numbers, got [1.0, nan]; look at the ...
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float32).detach()
    fine = tuple(rewards.shape) == (rows,) and bool(rewards.isfinite().all())
    remedy = "look at the responses that have none"
    require(fine, "rewards", rewards.tolist(), f"{rows} finite numbers", remedy)
    return rewards
