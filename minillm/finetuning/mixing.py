r"""Several tasks in one run: whose turn is it?

One after the other, the last task writes over the first. So rows of all tasks are
mixed, and the question is in which shares. With :math:`n_i` examples of task i,

.. math:: p_i \propto \min(n_i, K)^\alpha

- :math:`\alpha = 1` is everything once: small tasks drown;
- :math:`\alpha = 0` is equal shares: small tasks are repeated until they are known by
  heart, while most of a large one is never seen;
- between lies a temperature :math:`1 / \alpha` (0.5 in XLM, 0.3 in mT5);
- a cap K (T5) leaves small tasks alone and keeps one huge task from filling everything.

How often an example of task i comes up is :math:`p_i N / n_i` in N rows. That number,
and not p, says what is learned by heart.

The shares are dealt, not drawn: in each epoch a comb of N equally spaced teeth, shifted
by one random u, falls on the shares laid end to end. Task i gets N p_i rows in the mean
over u, and never more than one row off. Within a task every example comes once before
any comes twice.

Source: Conneau & Lample 2019 (XLM, arXiv:1901.07291), section 3.1; Raffel et al. 2020
(T5, 1910.10683), section 3.5.2; Xue et al. 2021 (mT5, 2010.11934), section 3.2. Differs
from them: they draw each row by itself, which has the same mean and a wider spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from torch.nn.utils.rnn import pad_sequence

from minillm.data.batches import Batch, hash_of
from minillm.data.chat import Encoded
from minillm.data.examples import Examples
from minillm.errors import require, require_count


def mixing_shares(
    sizes: Sequence[int], alpha: float = 1.0, cap: int | None = None
) -> list[float]:
    """The share of rows that each task gets.

    Args:
        sizes: examples of each task.
        alpha: 1 in proportion to their numbers, 0 equal, between them tempered.
        cap: a task counts as no larger than this.

    Raises:
        ValueError: no task, an empty one, an alpha outside 0..1, a cap below 1.

    >>> mixing_shares([900, 100]), mixing_shares([900, 100], alpha=0.5)
    ([0.9, 0.1], [0.75, 0.25])
    >>> mixing_shares([900, 100], cap=300), mixing_shares([900, 100], alpha=0)
    ([0.75, 0.25], [0.5, 0.5])
    """
    require(len(sizes) > 0, "sizes", sizes, "of at least one task", "give a task")
    for n in sizes:
        require_count(size=n)
    require_count(cap=max(sizes) if cap is None else cap)
    remedy = "1 is in proportion, 0 equal"
    require(0 <= alpha <= 1, "alpha", alpha, "in 0..1", remedy)
    weights = [min(n, cap or n) ** alpha for n in sizes]
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several tasks in given shares; a function of the step, as ``Examples``.

    Args:
        tasks: the encoded examples of each.
        T, B, pad, seed: as in ``Examples``.
        alpha, cap: as in ``mixing_shares``.

    Raises:
        ValueError: as ``Examples`` and ``mixing_shares``.

    >>> one, two = ([Encoded([i, i], [False, True])] * n for i, n in ((1, 9), (2, 3)))
    >>> mixture = Mixture([one, two], T=4, B=12, pad=0, alpha=0)
    >>> mixture[0].tokens[:, 0].bincount()
    tensor([0, 6, 6])
    """

    tasks: Sequence[Sequence[Encoded]]
    T: int
    B: int
    pad: int
    seed: int = 0
    alpha: float = 1.0
    cap: int | None = None

    def __post_init__(self) -> None:
        _ = self.shares
        Examples(self.encoded, self.T, self.B, self.pad, self.seed)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The share of rows of each task."""
        sizes = [len(task) for task in self.tasks]
        return tuple(mixing_shares(sizes, self.alpha, self.cap))

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The examples of all tasks, one task after the other."""
        return [example for task in self.tasks for example in task]

    @property
    def rows_per_epoch(self) -> int:
        """As many rows as there are examples, though some may come twice."""
        return len(self.encoded)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what ``mixture[step]`` is."""
        return hash_of((self.B, *self.shares, *(e.fingerprint for e in self._rows)))

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(i) for i in range(step * self.B, (step + 1) * self.B)]
        tokens, masks = zip(*rows, strict=True)
        padded = pad_sequence(tokens, True, self.pad)
        return Batch(padded, pad_sequence(masks, True, False))

    def place(self, i: int) -> tuple[int, int]:
        """Whose turn the i-th row of all epochs is, and which of that task's rows."""
        epoch, place = divmod(i, self.rows_per_epoch)
        tasks, turns = deal(self.shares, self.rows_per_epoch, self.seed, epoch)
        return int(tasks[place]), int(turns[place])

    def _row(self, i: int) -> Batch:
        task, turn = self.place(i)
        tokens, mask = self._rows[task][turn]
        return Batch(tokens[0], mask[0])

    @cached_property
    def _rows(self) -> list[Examples]:
        """Each task by itself, a row at a time, and in an order of its own."""
        return [
            Examples(task, self.T, 1, self.pad, self.seed + k)
            for k, task in enumerate(self.tasks)
        ]


@lru_cache(maxsize=8)
def deal(
    shares: tuple[float, ...], N: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whose turn each of an epoch's N rows is, and how many that task had before.

    Args:
        shares: of the tasks; their sum is 1.
        N: rows of an epoch.
        seed, epoch: what the order is a function of.

    >>> tasks, turns = deal((0.75, 0.25), N=8, seed=0, epoch=1)
    >>> np.bincount(tasks), turns[tasks == 1]   # two turns in epoch 0 already
    (array([6, 2]), array([2, 3]))
    """
    ends = np.cumsum(shares)[:-1]

    def dealt(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        comb = (np.arange(N) + rng.random()) / N
        return rng.permutation(np.searchsorted(ends, comb, side="right"))

    tasks, turns = dealt(epoch), np.empty(N, dtype=np.int64)
    past = [np.bincount(dealt(e), minlength=len(shares)) for e in range(epoch)]
    before = sum(past, np.zeros(len(shares), dtype=np.int64))
    for task, had in enumerate(before):
        own = tasks == task
        turns[own] = had + np.arange(own.sum())
    return tasks, turns
