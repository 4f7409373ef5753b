"""The data-copying test C_T of Meehan, Chaudhuri and Dasgupta (2020), A Non-Parametric Test to Detect Data-Copying.

Plain PyTorch, on the driver. A model that copies in one region and strays in another can look right on average, so the
training set is cut into cells by k-means, and in each cell the distances of generated and of held-out examples to the
nearest training example are compared by the Mann-Whitney U statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.neighbours import nearest, nearest_row
from pipeline.models.base import make_generator

FEWEST_IN_CELL = 20
"""Generated and held-out examples that a cell needs, for U to be about normal (Meehan et al. 2020, section 4)."""
EXAMPLES_PER_CELL = 60
MOST_CELLS = 20
LLOYD_STEPS = 25
Z_975 = 1.959963984540054


@dataclass(frozen=True)
class DataCopying:
    """`statistic` is C_T, the mean of the cells' z-scores weighted by their share of held-out examples: about 0 for a
    model that is as new as unseen data, below 0 for copying. `z` is C_T over its own standard deviation under that
    hypothesis, standard normal then. `closer` is the probability, in a mean cell, that a generated example is nearer to
    the training set than a held-out one. `cells` are those that had enough examples, which hold `covered` of the
    held-out ones; the statistics are 0 and 0.5 where none had. Intervals are 95%, normal, with the variance under the
    hypothesis that generated and held-out examples are alike.
    """

    statistic: float
    interval: Interval
    z: float
    closer: float
    closer_interval: Interval
    cells: int
    covered: float


def data_copying(
    generated: Tensor, held_out: Tensor, train: Tensor, seed: int = 0, cells: int | None = None
) -> DataCopying:
    """C_T of `generated` `[n, D]` and `held_out` `[m, D]` with `train` `[t, D]`: definition 3.2 of the paper, with
    ties counted by half and their variance corrected.

    `cells` is the number of k-means cells, by default one for every 60 examples of the smaller set, at most 20.
    """
    if cells is None:
        cells = min(MOST_CELLS, max(1, min(len(generated), len(held_out)) // EXAMPLES_PER_CELL))
    centres = k_means(train, min(cells, len(train)), seed)
    of_generated, of_held_out, of_train = (nearest_row(x, centres) for x in (generated, held_out, train))
    found: list[tuple[float, float, float, float]] = []
    for cell in range(len(centres)):
        ours, theirs, near = generated[of_generated == cell], held_out[of_held_out == cell], train[of_train == cell]
        if min(len(ours), len(theirs)) < FEWEST_IN_CELL or len(near) == 0:
            continue
        u, variance = mann_whitney(nearest(ours, near).distances[:, 0], nearest(theirs, near).distances[:, 0])
        pairs = len(ours) * len(theirs)
        z = (u - pairs / 2) / math.sqrt(variance) if variance > 0 else 0.0
        found.append((len(theirs) / len(held_out), z, u / pairs, variance / pairs**2))
    if not found:
        return DataCopying(0.0, (-math.inf, math.inf), 0.0, 0.5, (0.0, 1.0), 0, 0.0)
    covered = math.fsum(weight for weight, _, _, _ in found)
    statistic = math.fsum(weight * z for weight, z, _, _ in found) / covered
    deviation = math.sqrt(math.fsum(weight**2 for weight, _, _, _ in found)) / covered
    closer = 1 - math.fsum(weight * farther for weight, _, farther, _ in found) / covered
    half = Z_975 * math.sqrt(math.fsum(weight**2 * variance for weight, _, _, variance in found)) / covered
    return DataCopying(
        statistic=statistic,
        interval=(statistic - Z_975 * deviation, statistic + Z_975 * deviation),
        z=statistic / deviation,
        closer=closer,
        closer_interval=(max(0.0, closer - half), min(1.0, closer + half)),
        cells=len(found),
        covered=covered,
    )


def mann_whitney(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """U, the number of pairs in which a value of `ours` `[n]` is above one of `theirs` `[m]` (ties count half), and its
    variance where both are draws of one distribution (Mann and Whitney 1947; ties by Lehmann 1975, eq. 1.35)."""
    n, m = len(ours), len(theirs)
    ordered = theirs.sort().values
    below, not_above = torch.searchsorted(ordered, ours), torch.searchsorted(ordered, ours, right=True)
    u = float((below + not_above).double().sum()) / 2
    ties = torch.cat([ours, theirs]).unique(return_counts=True)[1].double()
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return u, variance


def k_means(x: Tensor, count: int, seed: int) -> Tensor:
    """`count` centres `[count, D]` of `x` `[N, D]`: Lloyd's steps from the seeding of Arthur and Vassilvitskii (2007).

    A centre that no example is nearest to stays where it is.
    """
    generator = make_generator(seed, "novelty-cells")
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    squares = torch.full((len(x),), torch.inf, dtype=torch.float64)
    while len(centres) < count:
        squares = torch.minimum(squares, (x - centres[-1]).square().sum(1).double())
        if not bool(squares.sum() > 0):
            break
        centres = torch.cat([centres, x[torch.multinomial(squares, 1, generator=generator)]])
    for _ in range(LLOYD_STEPS):
        cell = nearest_row(x, centres)
        sizes = torch.bincount(cell, minlength=len(centres)).to(x.dtype).unsqueeze(1)
        means = torch.zeros_like(centres).index_add_(0, cell, x) / sizes.clamp(min=1)
        moved = torch.where(sizes > 0, means, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
