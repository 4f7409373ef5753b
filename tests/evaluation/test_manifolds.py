"""Precision, recall, density and coverage against a reference implementation, a plain one and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.evaluation import manifolds as room
from pipeline.evaluation.intervals import jackknife
from pipeline.evaluation.manifolds import Manifold, neighbourhoods
from tests.evaluation.test_kernel_distance import normal

NAMES = ("precision", "recall", "density", "coverage")


def plain(generated: torch.Tensor, real: torch.Tensor, k: int = 5) -> dict[str, float]:
    """The definitions, with every distance of every pair."""

    def radii(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x - one).norm(dim=1).sort().values[k] for one in x])

    distances = torch.stack([(generated - one).norm(dim=1) for one in real])  # [real, generated]
    in_real = distances <= radii(real).unsqueeze(1)
    in_generated = distances <= radii(generated).unsqueeze(0)
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_generated.any(1).double().mean()),
        "density": float(in_real.double().sum(0).mean()) / k,
        "coverage": float((distances.min(1).values <= radii(real)).double().mean()),
    }


def scores(generated: torch.Tensor, real: torch.Tensor) -> dict[str, tuple[float, tuple[float, float] | None]]:
    return neighbourhoods(Manifold.of(generated), Manifold.of(real))


@pytest.mark.parametrize("strip", [7, 500])
def test_they_are_their_definitions_and_their_intervals_leave_out_blocks(
    strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "STRIP", strip)
    generated, real = 0.9 * normal(90, 4, 0, 0.9), normal(100, 4, 1)
    found, expected = scores(generated, real), plain(generated, real)
    blocks = (torch.arange(90) * 10 // 90, torch.arange(100) * 10 // 100)
    without = [plain(generated[blocks[0] != b], real[blocks[1] != b]) for b in range(10)]
    for name in NAMES:
        value, interval = found[name]
        assert value == pytest.approx(expected[name], abs=1e-12)
        own = jackknife(value, [one[name] for one in without])[1]
        assert own is not None and interval is not None
        assert interval[0] == pytest.approx(max(0.0, own[0]), abs=1e-9)
        assert interval[1] == pytest.approx(own[1] if name == "density" else min(1.0, own[1]), abs=1e-9)


def test_radii_without_a_block_are_exact_when_all_neighbours_are_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are clusters: with no neighbour to spare, the radius is found among all distances."""
    monkeypatch.setattr(room, "SPARE", 0)
    points = normal(100, 3, 2) + 50 * (torch.arange(100) // 10).unsqueeze(1)
    radii = Manifold.of(points).radii
    for block in (0, 4):
        kept = torch.arange(100) // 10 != block
        assert torch.allclose(radii[block, kept], Manifold.of(points[kept]).radii[room.BLOCKS])


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 0.5), (0.2, 1.5)])
def test_they_agree_with_prdc(shift: float, scale: float) -> None:
    reference = pytest.importorskip("prdc")
    generated, real = scale * normal(300, 64, 3) + shift, normal(400, 64, 4)
    expected = reference.compute_prdc(real_features=real.numpy(), fake_features=generated.numpy(), nearest_k=5)
    for name, (value, _) in scores(generated, real).items():
        assert value == pytest.approx(expected[name], rel=1e-6)


def test_of_one_distribution_density_and_coverage_have_their_closed_forms() -> None:
    """Naeem et al. (2020), eqs. 6 and 7: 1, and 1 - prod((n - i) / (2n - i))."""
    n, k = 100, 5
    found = [scores(normal(n, 3, 2 * seed), normal(n, 3, 2 * seed + 1)) for seed in range(150)]
    truth = {"density": 1.0, "coverage": 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))}
    for name, expected in truth.items():
        values = torch.tensor([one[name][0] for one in found])
        assert abs(float(values.mean()) - expected) < 3 * float(values.std()) / math.sqrt(len(values))
        hits = sum(one[name][1][0] <= expected <= one[name][1][1] for one in found)
        assert hits / len(found) > 0.93


def test_a_collapsed_set_is_precise_and_covers_nothing() -> None:
    real = normal(200, 8, 5)
    collapsed = real[:10].repeat(20, 1) + 1e-3 * normal(200, 8, 6)
    found = {name: value for name, (value, _) in scores(collapsed, real).items()}
    assert found["precision"] == 1.0 and found["recall"] < 0.1 and found["coverage"] < 0.5
    scattered = {name: value for name, (value, _) in scores(10 * normal(200, 8, 7), real).items()}
    assert scattered["precision"] < 0.1 and scattered["coverage"] < 0.1


def test_intervals_cover_the_mean_of_all_repeats() -> None:
    repeats = [scores(0.8 * normal(200, 2, 2 * seed) + 0.4, normal(200, 2, 2 * seed + 1)) for seed in range(200)]
    for name in NAMES:
        truth = math.fsum(one[name][0] for one in repeats) / len(repeats)
        hits = sum(one[name][1][0] <= truth <= one[name][1][1] for one in repeats)
        assert 186 <= hits <= 194
