"""The kernel distance against its definition, a reference implementation and the closed form of two Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.evaluation import kernel_distance as room
from pipeline.evaluation.kernel_distance import kernel_distance


def normal(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, dtype=torch.float64, generator=generator) + shift


def plain(x: torch.Tensor, y: torch.Tensor) -> float:
    """Gretton et al. (2012), eq. 3, pair by pair."""

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = math.fsum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = math.fsum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * math.fsum(k(a, b) for a in x for b in y) / (n * m)


def test_it_is_its_definition_over_all_pairs_and_its_interval_leaves_out_blocks() -> None:
    x, y = normal(23, 3, 0), normal(30, 3, 1, 0.4)
    value, interval = kernel_distance(x, y)
    assert value == pytest.approx(plain(x, y), rel=1e-10)
    without = [
        plain(x[torch.arange(23) * 10 // 23 != block], y[torch.arange(30) * 10 // 30 != block]) for block in range(10)
    ]
    assert interval == pytest.approx(room.jackknife(value, without)[1], rel=1e-9)


def test_it_agrees_with_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(300, 64, 2) * 2, normal(300, 64, 3, 0.3)
    assert kernel_distance(x, y)[0] == pytest.approx(float(reference.poly_mmd(x, y)), rel=1e-6)


def test_the_size_of_tiles_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(100, 5, 4), normal(90, 5, 5)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(room, "LARGEST_TILE", 3)
    assert kernel_distance(x, y)[0] == pytest.approx(whole[0], rel=1e-10)


def test_two_halves_of_one_set_are_no_distance_apart() -> None:
    values = [kernel_distance(normal(200, 8, 2 * seed), normal(200, 8, 2 * seed + 1))[0] for seed in range(100)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 10
    assert abs(float(mean)) < 3 * float(error)


def test_intervals_cover_the_closed_form_of_two_gaussians() -> None:
    """With D = 1, E k(a, b) of independent a and b is the sum of binomials times products of their moments."""

    def moments(mean: float, deviation: float) -> list[float]:
        return [1, mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2]

    a, b = moments(0.0, 1.0), moments(0.6, 1.2)
    truth = sum(c * (a[i] - b[i]) ** 2 for i, c in enumerate([1, 3, 3, 1]))
    hits = 0
    for seed in range(200):
        low, high = kernel_distance(normal(400, 1, seed), 1.2 * normal(400, 1, 1000 + seed) + 0.6)[1] or (0, 0)
        hits += low <= truth <= high
    assert 186 <= hits <= 194
