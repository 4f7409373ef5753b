"""The paired interval of what one model has over another, by resampling the blocks that both were measured on.

Plain PyTorch and NumPy, on the driver. Both models saw the same blocks of the same split with the same noise, so each
resample takes the same blocks of both: what is easy or hard for either cancels, and the interval of the difference is
narrower than those of the two scores. Direction, unit and protocol are those of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pipeline.errors import ComparisonError
from pipeline.evaluation.compare import Measured, check_comparable
from pipeline.evaluation.metric import FEWEST_BLOCKS, Interval, Score, Sums
from pipeline.models.base import make_generator

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From values of the champion `[R]` and of the challenger `[R]` to a figure `[R]`, such as their difference."""

FEWEST_FOR_RESAMPLING = 8
"""With fewer blocks percentiles are too narrow (5 blocks, a mean of normal values, 4,000 simulations: 4.1% of the lower
ends lie above the truth; 8 blocks 2.7%, 20 blocks 2.8%) and the jackknife, which for a mean is the t interval, is not.
"""
LARGEST = 512 * 512
"""Numbers in a block's sums (moments of features) above which a resample costs seconds: the jackknife then does."""


ROWS_AT_ONCE = 32
"""Resamples whose sums lie in memory together."""


@dataclass(frozen=True)
class Pair:
    """The values of a score of two models, and the 95% interval of any statistic of the two.

    `interval` gives None when the split has too few blocks, or a score has no interval of its own.
    """

    metric: str
    champion: float
    challenger: float
    better: str
    unit: str
    protocol: dict[str, Any]
    method: str
    interval: Callable[[Statistic], Interval | None]

    def at(self, statistic: Statistic) -> float:
        """The statistic of the two values."""
        return float(statistic(np.array([self.champion]), np.array([self.challenger]))[0])


def pair(metric: str, champion: Measured, challenger: Measured, repeats: int = 1000, seed: int = 0) -> Pair:
    """Two models measured on the same blocks, with intervals by the bootstrap over blocks.

    Percentiles of `repeats` resamples, centred on the value (resampling overstates a distance between sets, of both
    models alike) and expanded for few blocks. Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap,
    section 13.3; expanded percentiles: Hesterberg (2015), What Teachers Should Know About the Bootstrap, section 4.
    With few blocks, or where the sums of a block are large, the interval is the delete-one-block jackknife (the same
    book, eq. 11.5).
    Raises: ComparisonError when the scores are of different protocols or blocks, or have no better direction.
    """
    check_comparable(metric, champion.score, challenger.score)
    if champion.blocks.keys() != challenger.blocks.keys():
        raise ComparisonError(
            f"{metric}: the champion was measured on {len(champion.blocks)} blocks and the challenger on "
            f"{len(challenger.blocks)}; score both again on the same data"
        )
    count = len(champion.blocks)
    stacks = tuple(_stacked(measured) for measured in (champion, challenger))
    largest = max((tensor[0].numel() for stack in stacks for tensor in stack.values()), default=0)
    without_one = largest > LARGEST or count < FEWEST_FOR_RESAMPLING
    values: list[np.ndarray] = []
    if count >= FEWEST_BLOCKS:
        weights = _without_one(count) if without_one else _resamples(count, repeats, seed)
        values = [_values(stack, one.value, weights) for stack, one in zip(stacks, (champion, challenger), strict=True)]

    def interval(statistic: Statistic) -> Interval | None:
        if not values:
            return None
        found, draws = result.at(statistic), statistic(values[0], values[1])
        if not np.isfinite(draws).all():
            return None
        return _jackknifed(found, draws) if without_one else _percentiles(found, draws, count)

    result = Pair(
        metric,
        champion.score.value,
        challenger.score.value,
        str(challenger.score.better),
        challenger.score.unit,
        dict(challenger.score.protocol),
        f"paired {'jackknife' if without_one else f'bootstrap ({repeats} resamples)'} over {count} blocks",
        interval,
    )
    return result


def pair_scores(metric: str, champion: Score, challenger: Score) -> Pair:
    """Two scores of which only the intervals are known, added in quadrature as if they were independent.

    What both models find hard does not cancel, so this is wider than a paired interval. Raises: as `pair`.
    """
    check_comparable(metric, champion, challenger)

    def interval(statistic: Statistic) -> Interval | None:
        if champion.interval is None or challenger.interval is None:
            return None
        ends = np.array(champion.interval), np.array(challenger.interval)
        by_champion = np.ptp(statistic(ends[0], np.full(2, challenger.value))) / 2
        by_challenger = np.ptp(statistic(np.full(2, champion.value), ends[1])) / 2
        found, half = result.at(statistic), math.hypot(by_champion, by_challenger)
        return found - half, found + half

    result = Pair(
        metric,
        champion.value,
        challenger.value,
        str(challenger.better),
        challenger.unit,
        dict(challenger.protocol),
        "the two intervals in quadrature, unpaired",
        interval,
    )
    return result


# --- resampling -----------------------------------------------------------------------------------------------


def _stacked(measured: Measured) -> dict[str, Tensor]:
    """The sums of all blocks `[B, ...]` float64 by name, zero where a block has none of a name."""
    blocks = [measured.blocks[number] for number in sorted(measured.blocks)]
    empty = {name: torch.zeros_like(value) for block in blocks for name, value in block.items()}
    stacks = {name: torch.stack([block.get(name, zero) for block in blocks]) for name, zero in empty.items()}
    return {name: stack.double() for name, stack in stacks.items()}


def _resamples(count: int, repeats: int, seed: int) -> Tensor:
    """How often each block is in each resample, `[repeats, count]` float64; rows sum to `count`."""
    generator = make_generator(seed, "paired-bootstrap", count)
    drawn = torch.randint(count, (repeats, count), generator=generator)
    return torch.zeros(repeats, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def _without_one(count: int) -> Tensor:
    """All blocks but one, `[count, count]`."""
    return 1 - torch.eye(count, dtype=torch.float64)


def _values(stack: dict[str, Tensor], value: Callable[[Sums], float], weights: Tensor) -> np.ndarray:
    """The value of the weighted sum of the blocks for each row of `weights` `[R, B]`."""
    values: list[float] = []
    for rows in weights.split(ROWS_AT_ONCE):
        added = {name: (rows @ sums.reshape(len(sums), -1)).view(-1, *sums.shape[1:]) for name, sums in stack.items()}
        values += [value({name: part[row] for name, part in added.items()}) for row in range(len(rows))]
    return np.array(values)


def _percentiles(found: float, draws: np.ndarray, count: int) -> Interval:
    level = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))
    low, high = np.quantile(draws, [level, 1 - level]) - draws.mean()
    return found + float(low), found + float(high)


def _jackknifed(found: float, left_out: np.ndarray) -> Interval:
    count = len(left_out)
    error = math.sqrt((count - 1) * float(left_out.var()))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return found - half, found + half
