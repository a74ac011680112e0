r"""Pipelines on paper: who computes what when, and who waits.

Cut a model of L blocks into p stages, a process each, and a batch into m micro-batches
that follow one another through the stages. At the start the last stage waits for the
first micro-batch, at the end the first waits for its last gradient. With equal stages a
pass takes m + p - 1 turns of which each stage works in m, so that

.. math:: \text{bubble} = \frac{p - 1}{m + p - 1}

of the time is lost, whichever of the two orders is chosen:

- **GPipe**: all forward, then all backward. Each stage keeps m micro-batches.
- **1F1B**: as soon as there is a gradient, one backward for one forward. Stage s (from
  0) keeps at most p - s of them, however many follow.

Source: Huang et al. 2019 (GPipe, arXiv:1811.06965), section 2.3; Narayanan et al. 2021
(PipeDream-Flush, arXiv:2104.04473), section 2.2. The latter divides by the time of work
and not of all: (p - 1) / m.
"""

from typing import NamedTuple

from minillm.errors import require, require_count


class Action(NamedTuple):
    """A forward ("F") or backward ("B") pass of a micro-batch through a stage."""

    kind: str
    micro: int


class Event(NamedTuple):
    """An action of a stage, and when it began and ended."""

    stage: int
    action: Action
    start: float
    end: float


def gpipe(p: int, m: int) -> list[list[Action]]:
    """For each of p stages its actions with m micro-batches: all forward first.

    >>> "".join(f"{kind}{i} " for kind, i in gpipe(2, 3)[0])
    'F0 F1 F2 B0 B1 B2 '
    """
    require_count(p=p, m=m)
    return [[Action(kind, i) for kind in "FB" for i in range(m)] for _ in range(p)]


def one_f_one_b(p: int, m: int) -> list[list[Action]]:
    """For each stage its actions: p - s - 1 forward, then one of each in turns.

    >>> "".join(f"{kind}{i} " for kind, i in one_f_one_b(2, 3)[0])
    'F0 F1 B0 F2 B1 B2 '
    """
    require_count(p=p, m=m)
    stages = []
    for stage in range(p):
        ahead = min(p - stage - 1, m)
        actions = [Action("F", i) for i in range(ahead)]
        for i in range(m):
            actions += [Action("F", ahead + i)] if ahead + i < m else []
            actions += [Action("B", i)]
        stages.append(actions)
    return stages


def timeline(
    schedule: list[list[Action]], forward: float = 1.0, backward: float = 2.0
) -> list[Event]:
    """Run a schedule on a clock: each action waits for its stage and for what it needs.

    Args:
        schedule: actions of each stage, in order.
        forward, backward: how long a pass through one stage takes.

    Returns:
        all events, in the order of their start.

    Raises:
        ValueError: stages that wait for one another for ever.
    """
    ends: dict[tuple[str, int, int], float] = {}  # of (kind, micro, stage)
    events, waiting = [], [list(actions) for actions in schedule]
    free = [0.0] * len(schedule)
    while any(waiting):
        before = len(events)
        for stage, queue in enumerate(waiting):
            needs = _needs(queue[0], stage, len(schedule)) if queue else [None]
            if not all(key in ends for key in needs):
                continue
            action, ready = queue.pop(0), [ends[key] for key in needs]
            start = max([free[stage], *ready])
            free[stage] = start + (forward if action.kind == "F" else backward)
            ends[(*action, stage)] = free[stage]
            events.append(Event(stage, action, start, free[stage]))
        remedy = "let every stage do each F before its B, in one order"
        require(len(events) > before, "schedule", "a deadlock", "without one", remedy)
    return sorted(events, key=lambda event: event.start)


def _needs(action: Action, stage: int, p: int) -> list[tuple]:
    """What must have ended: the pass below, or above, and one's own forward pass."""
    kind, i = action
    if kind == "F":
        return [("F", i, stage - 1)] if stage else []
    above = [("B", i, stage + 1)] if stage + 1 < p else []
    return [("F", i, stage), *above]


def bubble(events: list[Event]) -> float:
    """The share of time, over all stages, in which nothing is computed.

    >>> bubble(timeline(one_f_one_b(p=4, m=8))), (4 - 1) / (8 + 4 - 1)
    (0.272..., 0.272...)
    """
    stages = 1 + max(event.stage for event in events)
    whole = stages * max(event.end for event in events)
    return 1 - sum(event.end - event.start for event in events) / whole


def in_flight(actions: list[Action]) -> int:
    """The most micro-batches whose activations a stage holds at a time.

    >>> [in_flight(stage) for stage in one_f_one_b(p=4, m=8)]
    [4, 3, 2, 1]
    """
    held = most = 0
    for kind, _ in actions:
        held += 1 if kind == "F" else -1
        most = max(most, held)
    return most
