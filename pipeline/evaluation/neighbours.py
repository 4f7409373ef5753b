"""The nearest of one set of examples to each of another, in bounded memory.

Plain PyTorch, on the driver. Every measure of novelty reads these distances, which are therefore found once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_NUMBERS = 8_000_000
"""Numbers that a chunk's arrays may hold: 64 MB of float64."""
EXACT = 2
"""Nearest ones whose distance is taken from the differences."""


@dataclass(frozen=True)
class Neighbours:
    """For each of N queries its `k` nearest references: `distances` float64 `[N, k]`, ascending, and `rows` int64
    `[N, k]`."""

    distances: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.distances)


def nearest(queries: Tensor, references: Tensor, count: int = 1, exclude: Tensor | None = None) -> Neighbours:
    """The `count` nearest of `references` `[T, D]` to each of `queries` `[N, D]` by Euclidean distance.

    `exclude` int64 `[N]` is a reference that does not count for each query: itself, where the queries are among the
    references. Distances are found by |q|^2 + |r|^2 - 2 q.r in the arguments' type; the first are then taken from the
    differences in float64, so that the one of a copy, nearly zero, has no rounding error of the squares.

    Raises: ValueError when there are fewer than `count` references to choose from.
    """
    available = len(references) - (exclude is not None)
    if not 1 <= count <= available:
        raise ValueError(f"{count} nearest of {available} references; give at least as many references as neighbours")
    centre = references.mean(0)
    queries, references = queries - centre, references - centre
    squares = references.square().sum(1)
    exactly = min(count, EXACT)
    size = max(1, CHUNK_NUMBERS // (len(references) + exactly * references.shape[1]))
    distances, rows = [], []
    for start in range(0, len(queries), size):
        chunk = queries[start : start + size]
        closeness = torch.addmm(squares, chunk, references.T, alpha=-2)  # [n, T], short of |q|^2
        if exclude is not None:
            closeness.scatter_(1, exclude[start : start + size].unsqueeze(1), torch.inf)
        near, found = closeness.topk(count, dim=1, largest=False)  # [n, k]
        apart = (near.double() + chunk.double().square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        for place in range(exactly):
            apart[:, place] = (references[found[:, place]].double() - chunk.double()).square().sum(1).sqrt()
        ordered, order = apart.sort(dim=1, stable=True)
        distances.append(ordered)
        rows.append(found.gather(1, order))
    if not distances:
        return Neighbours(torch.zeros(0, count, dtype=torch.float64), torch.zeros(0, count, dtype=torch.int64))
    return Neighbours(torch.cat(distances), torch.cat(rows))


def nearest_row(queries: Tensor, references: Tensor) -> Tensor:
    """The row of the nearest of `references` `[T, D]` to each of `queries` `[N, D]`, int64 `[N]`, and nothing else."""
    return torch.addmm(references.square().sum(1), queries, references.T, alpha=-2).argmin(1)
