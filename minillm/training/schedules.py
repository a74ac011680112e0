r"""Learning-rate schedules: pure functions from the step to a factor in [0, 1].

The factor multiplies each group's peak learning rate. All schedules warm up linearly,
because Adam's second moment knows nothing at first; all are clamped after the last
step, because a cosine left alone rises again.

    cosine   warm-up, then half a cosine down to ``floor``
    wsd      warm-up, stable, then linear decay to ``floor`` over the last part; its
             plateau can be prolonged, so the length need not be known in advance
    constant warm-up, then 1
"""

import math

from minillm.errors import require


def warmup_factor(step: int, warmup: int) -> float:
    """Rise linearly from 1 / warmup at step 0, so that no step is lost, to 1.

    >>> [warmup_factor(step, warmup=4) for step in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    """
    return min((step + 1) / warmup, 1.0) if warmup else 1.0


def cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    r"""Half a cosine from 1 at the end of warm-up to ``floor`` at the last step.

    .. math:: floor + (1 - floor) \cdot \tfrac{1}{2} (1 + \cos \pi x)

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts.

    >>> [round(cosine(step, steps=101, warmup=0), 2) for step in (0, 50, 100, 500)]
    [1.0, 0.5, 0.0, 0.0]
    """
    x = _progress(step, warmup, steps - 1)
    half = 0.5 * (1 + math.cos(math.pi * x))
    return warmup_factor(step, warmup) * (floor + (1 - floor) * half)


def wsd(step: int, steps: int, warmup: int, floor=0.0, decay=0.3) -> float:
    """Warm-up, stable, decay: linear to ``floor`` over the last ``decay`` of the steps.

    Source: Hu et al. 2024 (MiniCPM), section 4. Differs from the paper: the decay is
    linear, which Haegele et al. 2024 found as good.

    >>> [round(wsd(step, 101, 0, decay=0.5), 2) for step in (0, 50, 75, 100, 500)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    x = _progress(step, round((1 - decay) * (steps - 1)), steps - 1)
    return warmup_factor(step, warmup) * (floor + (1 - floor) * (1 - x))


def constant(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Stay at the peak after warm-up.

    >>> constant(1000, steps=10, warmup=5)
    1.0
    """
    return warmup_factor(step, warmup)


def _progress(step: int, start: int, end: int) -> float:
    """How far ``step`` is between start and end, held within [0, 1]."""
    require(step >= 0, "step", step, "at least 0", "count steps from 0")
    if end <= start:
        return 0.0 if step < max(end, 1) else 1.0  # a run of one step learns something
    return min(max((step - start) / (end - start), 0.0), 1.0)


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}
