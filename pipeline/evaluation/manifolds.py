"""Whether generated examples lie where real ones do, and everywhere that they do: by balls around nearest neighbours.

Pure functions of float64 features `[N, D]`, on the driver. A set's manifold is the union of balls around its examples,
each reaching to the example's k-th nearest neighbour in the set. Distances are computed a strip at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.intervals import Estimate, share, student_t_975, within
from pipeline.evaluation.score import Definition
from pipeline.models.base import make_generator

NEAREST = 5
"""k, as Naeem et al. (2020) advise."""
STRIP = 500
"""Rows of a matrix of distances that are in memory at once."""
KEPT = 40
"""Neighbours that are kept of each point, so that the k-th is known among any half of the others."""
HALVINGS = 12
"""How often a set is halved at random for the interval."""
DEGREES = 7
"""Degrees of freedom of the variance that twelve halvings give, as 200 repeats at n = 200 showed."""

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
    """Points `[N, D]` with their halves and balls.

    `member`, bool `[2 HALVINGS + 1, N]`: rows 2r and 2r + 1 are the two halves of a random halving, the last row is of
    all points. `radii`, `[2 HALVINGS + 1, N]`: the squared radius of each ball among the members.
    """

    points: Tensor
    member: Tensor
    radii: Tensor
    nearest: int

    @classmethod
    def of(cls, points: Tensor, stream: str, nearest: int = NEAREST) -> Manifold:
        """Takes 2 (`nearest` + 1) points or more; sets of different `stream` are halved independently."""
        count = len(points)
        member = torch.ones(2 * HALVINGS + 1, count, dtype=torch.bool)
        for r in range(HALVINGS):
            order = torch.randperm(count, generator=make_generator(0, f"halves-{stream}", r))
            member[2 * r, order[count // 2 :]] = False
            member[2 * r + 1, order[: count // 2]] = False
        kept = min(count - 1, KEPT)
        radii = torch.empty(len(member), count, dtype=torch.float64)
        for start in range(0, count, STRIP):
            rows = slice(start, min(start + STRIP, count))
            distances = squared_distances(points[rows], points)
            here = torch.arange(rows.stop - start)
            distances[here, here + start] = torch.inf
            near, which = distances.topk(kept, dim=1, largest=False)  # [strip, kept], ascending
            for s, own in enumerate(member):
                found = own[which].cumsum(1)
                place = (found >= nearest).to(torch.uint8).argmax(1)
                radii[s, rows] = near.gather(1, place.unsqueeze(1)).squeeze(1)
                short = (found[:, -1] < nearest).nonzero().squeeze(1)
                if len(short):
                    rest = distances[short][:, own]
                    radii[s, start + short] = rest.kthvalue(nearest, dim=1).values
        return cls(points, member, radii, nearest)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`[N, M]` of `x` `[N, D]` and `y` `[M, D]`."""
    squares = x.square().sum(1).unsqueeze(1) + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def neighbourhoods(generated: Manifold, real: Manifold) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of `generated` against `real`, with intervals; higher is better.

    Improved precision and recall: Kynkäänniemi et al. (2019), eqs. 1 and 2. Density and coverage: Naeem et al. (2020),
    eqs. 3 and 5; of equal sets of one distribution they are 1 and 1 - prod((n - i) / (2n - i)), i = 1 … k, on average
    (their eqs. 6 and 7). The interval is about the mean at these numbers of examples: the variance is half of that
    between the random halves of both sets (Politis, Romano and Wolf 1999, Subsampling, section 3.3). The jackknife is
    not consistent for neighbours: it gave 1.3 to 2.2 times the variance.
    """
    n, m, sets = len(generated.points), len(real.points), len(real.member)
    inside = torch.zeros(sets, dtype=torch.float64)  # generated examples in a real ball
    counts = torch.zeros(sets, dtype=torch.float64)  # pairs of a generated example and a real ball it is in
    members = [own.nonzero().squeeze(1) for own in real.member]
    recalled = [torch.zeros(len(own), dtype=torch.bool) for own in members]
    nearest = [torch.full((len(own),), torch.inf, dtype=torch.float64) for own in members]
    for start in range(0, n, STRIP):
        rows = slice(start, min(start + STRIP, n))
        distances = squared_distances(generated.points[rows], real.points)  # [strip, m]
        for s, columns in enumerate(members):
            own = generated.member[s, rows]
            taken = distances if s == sets - 1 else distances[own][:, columns]
            if not len(taken):
                continue
            near = (taken <= real.radii[s, columns]).sum(1)
            inside[s] += (near > 0).sum()
            counts[s] += near.sum()
            recalled[s] |= (taken <= generated.radii[s, rows][own].unsqueeze(1)).any(0)
            nearest[s] = torch.minimum(nearest[s], taken.min(0).values)
    sizes = generated.member.sum(1).double()
    values = {
        "precision": inside / sizes,
        "recall": torch.stack([found.double().mean() for found in recalled]),
        "density": counts / (real.nearest * sizes),
        "coverage": torch.stack(
            [(nearest[s] <= real.radii[s, columns]).double().mean() for s, columns in enumerate(members)]
        ),
    }
    found = {name: _halved(each) for name, each in values.items()}
    return {
        name: within(estimate, 0.0) if name == "density" else share(estimate, n if name == "precision" else m)
        for name, estimate in found.items()
    }


def _halved(values: Tensor) -> Estimate:
    """The last of `values`, of all points, with the interval from those of the halves before it."""
    value = float(values[-1])
    variance = float((values[0:-1:2] - values[1:-1:2]).square().mean()) / 4
    half = student_t_975(DEGREES) * math.sqrt(variance)
    return value, (value - half, value + half)
