"""95% intervals: by the jackknife, from the values that a score takes when each block of examples is left out.

Pure arithmetic. Ten or twenty blocks of independent examples are cut; what varies between the values without one of
them tells how much the score would vary between repeats. Of a plain share of examples, the binomial one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Interval = tuple[float, float]
Estimate = tuple[float, Interval | None]
"""A value and its 95% interval, None where there are too few blocks for one."""

FEWEST_BLOCKS = 5
"""With fewer blocks than this a standard error says too little to be shown."""
BLOCKS = 10
"""Blocks of a set of examples."""


def block_numbers(count: int, blocks: int = BLOCKS) -> Tensor:
    """The block of each of `count` examples, int64 `[count]`: runs of equal length, which differ by one at most.

    Blocks of neighbours are blocks at random, as the examples must be in an order of chance.
    """
    return torch.arange(count) * min(blocks, count) // max(1, count)


def jackknife(value: float, left_out: Sequence[float]) -> Estimate:
    """`value` with its interval from the values without each block, blocks being of about equal size.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, eq. 11.5, with Student's t.
    """
    count = len(left_out)
    if count < FEWEST_BLOCKS:
        return value, None
    mean = math.fsum(left_out) / count
    error = math.sqrt((count - 1) / count * math.fsum((other - mean) ** 2 for other in left_out))
    half = student_t_975(count - 1) * error
    return value, (value - half, value + half) if math.isfinite(half) else None


def within(estimate: Estimate, low: float = -math.inf, high: float = math.inf) -> Estimate:
    """The estimate with its interval cut to what the score can be."""
    value, interval = estimate
    return value, None if interval is None else (max(low, interval[0]), min(high, interval[1]))


def share(estimate: Estimate, count: int) -> Estimate:
    """The estimate of a share of `count` examples, its interval in [0, 1].

    At 0 or 1 all blocks agree and the jackknife says nothing: the interval then reaches to where so extreme a share
    has probability 0.025, 1 - 0.025^(1/count) (Clopper and Pearson 1934).
    """
    value, interval = within(estimate, 0.0, 1.0)
    if interval is None or count < 1:
        return value, interval
    reach = -math.expm1(math.log(0.025) / count)
    if value >= 1.0:
        return value, (min(interval[0], 1.0 - reach), 1.0)
    if value <= 0.0:
        return value, (0.0, max(interval[1], reach))
    return value, interval


def binomial(successes: float, total: float) -> Interval:
    """The exact 95% interval of a share of `total` independent examples, also for counts that are not whole.

    Source: Clopper and Pearson (1934).
    """
    from scipy.special import betaincinv  # takes a moment, which nobody else should wait for

    low = 0.0 if successes <= 0 else float(betaincinv(successes, total - successes + 1, 0.025))
    high = 1.0 if successes >= total else float(betaincinv(successes + 1, total - successes, 0.975))
    return low, high


def student_t_975(degrees: int) -> float:
    """The 97.5% quantile of Student's t, to 0.3% from 4 degrees on (Abramowitz and Stegun 1964, eq. 26.7.5)."""
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
