"""Whether generated examples lie where real ones do, and everywhere that they do: by balls around nearest neighbours.

Pure functions of float64 features `[N, D]`, on the driver. A set's manifold is the union of balls around its examples,
each reaching to the example's k-th nearest neighbour in the set. Distances are computed a strip at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.intervals import BLOCKS, Estimate, block_numbers, jackknife, share, within
from pipeline.evaluation.score import Definition

NEAREST = 5
"""k, as Naeem et al. (2020) advise."""
STRIP = 500
"""Rows of a matrix of distances that are in memory at once."""
SPARE = 20
"""Neighbours that are kept beyond the k-th, so that it is known with any block left out."""

_REAL = " The same for real examples is beside it: what a perfect model would score."
DEFINITIONS_OF_MANIFOLDS: dict[str, Definition] = {
    "precision": Definition(
        "Precision",
        "share of generated examples",
        "higher",
        "How many generated examples lie among real ones: are they good?" + _REAL,
        fewest=20,
        enough=1000,
    ),
    "recall": Definition(
        "Recall",
        "share of real examples",
        "higher",
        "How many real examples lie among generated ones: are they varied?" + _REAL,
        fewest=20,
        enough=1000,
    ),
    "density": Definition(
        "Density",
        "times that of real examples",
        "higher",
        "How many real examples a generated one is near to, against the number that is to be expected: like precision, "
        "but not fooled by outliers among the real ones. Well above 1, the model prefers the commonest kinds." + _REAL,
        fewest=20,
        enough=1000,
    ),
    "coverage": Definition(
        "Coverage",
        "share of real examples",
        "higher",
        "How many real examples have a generated one as near as their own neighbours are: like recall, but not fooled "
        "by outliers among the generated ones." + _REAL,
        fewest=20,
        enough=1000,
    ),
    **{
        f"{name}_ceiling": Definition(
            f"{name.capitalize()} of real examples",
            unit,
            None,
            f"{name.capitalize()} of one half of the real examples against the other: what a perfect model has.",
            fewest=20,
            enough=1000,
        )
        for name, unit in (
            ("precision", "share of real examples"),
            ("recall", "share of real examples"),
            ("density", "times that of real examples"),
            ("coverage", "share of real examples"),
        )
    },
}


@dataclass(frozen=True)
class Manifold:
    """Points `[N, D]` with the block of each, int64 `[N]`, and squared radii of their balls, `[BLOCKS + 1, N]`: the
    last row's with all points, row b's without those of block b, whose own are -1."""

    points: Tensor
    block: Tensor
    radii: Tensor
    nearest: int

    @classmethod
    def of(cls, points: Tensor, nearest: int = NEAREST) -> Manifold:
        """Takes more than `nearest` + 1 points in every nine of ten blocks."""
        count, block = len(points), block_numbers(len(points), BLOCKS)
        kept = min(count - 1, nearest + SPARE)
        radii = torch.empty(BLOCKS + 1, count, dtype=torch.float64)
        for start in range(0, count, STRIP):
            rows = slice(start, min(start + STRIP, count))
            distances = squared_distances(points[rows], points)
            here = torch.arange(rows.stop - start)
            distances[here, here + start] = torch.inf
            near, which = distances.topk(kept, dim=1, largest=False)  # [strip, kept], ascending
            radii[BLOCKS, rows] = near[:, nearest - 1]
            for b in range(BLOCKS):
                others = (block[which] != b).cumsum(1)
                place = (others >= nearest).to(torch.uint8).argmax(1)
                radii[b, rows] = near.gather(1, place.unsqueeze(1)).squeeze(1)
                short = (others[:, -1] < nearest).nonzero().squeeze(1)
                if len(short):
                    rest = distances[short][:, block != b]
                    radii[b, start + short] = rest.kthvalue(nearest, dim=1).values
        radii[block, torch.arange(count)] = -1.0
        return cls(points, block, radii, nearest)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`[N, M]` of `x` `[N, D]` and `y` `[M, D]`."""
    squares = x.square().sum(1).unsqueeze(1) + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def neighbourhoods(generated: Manifold, real: Manifold) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of `generated` against `real`, with intervals; higher is better.

    Improved precision and recall: Kynkäänniemi et al. (2019), eqs. 1 and 2. Density and coverage: Naeem et al. (2020),
    eqs. 3 and 5; of equal sets of one distribution they are 1 and 1 - prod((n - i) / (2n - i)), i = 1 … k, on average
    (their eqs. 6 and 7). The interval is a jackknife over ten blocks left out of both sets, about the mean at these
    numbers of examples.
    """
    n, m, k = len(generated.points), len(real.points), real.nearest
    inside = torch.zeros(BLOCKS + 1, dtype=torch.float64)  # generated examples in a real ball
    counts = torch.zeros(BLOCKS + 1, dtype=torch.float64)  # pairs of a generated example and a real ball it is in
    recalled = torch.zeros(BLOCKS + 1, m, dtype=torch.bool)
    nearest = torch.full((BLOCKS, m), torch.inf, dtype=torch.float64)  # to a generated example of each block
    for start in range(0, n, STRIP):
        rows = slice(start, min(start + STRIP, n))
        distances = squared_distances(generated.points[rows], real.points)  # [strip, m]
        block = generated.block[rows]
        for b in block.unique().tolist():
            nearest[b] = torch.minimum(nearest[b], distances[block == b].min(0).values)
        for b in range(BLOCKS + 1):
            within_balls = (distances <= real.radii[b]).sum(1)[block != b]
            inside[b] += (within_balls > 0).sum()
            counts[b] += within_balls.sum()
            recalled[b] |= (distances <= generated.radii[b, rows].unsqueeze(1)).any(0)

    sizes = torch.tensor([int((generated.block != b).sum()) for b in range(BLOCKS + 1)], dtype=torch.float64)
    real_kept = torch.stack([real.block != b for b in range(BLOCKS + 1)])
    to_nearest = torch.stack(
        [nearest[[other for other in range(BLOCKS) if other != b]].min(0).values for b in range(BLOCKS + 1)]
    )
    real_sizes = real_kept.sum(1).double()
    values = {
        "precision": inside / sizes,
        "recall": (recalled & real_kept).sum(1) / real_sizes,
        "density": counts / (k * sizes),
        "coverage": ((to_nearest <= real.radii) & real_kept).sum(1) / real_sizes,
    }
    found = {name: jackknife(float(each[BLOCKS]), each[:BLOCKS].tolist()) for name, each in values.items()}
    return {
        name: within(estimate, 0.0) if name == "density" else share(estimate, n if name == "precision" else m)
        for name, estimate in found.items()
    }
