"""C_T against its parts computed otherwise, and in simulation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pipeline.evaluation.data_copying import data_copying, k_means, mann_whitney
from pipeline.evaluation.neighbours import nearest


def normal(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ties", [False, True])
def test_u_and_its_variance_are_those_of_scipy(ties):
    ours, theirs = normal(40, 1, 0)[:, 0] + 0.3, normal(70, 1, 1)[:, 0]
    if ties:
        ours, theirs = (3 * ours).round(), (3 * theirs).round()
    u, variance = mann_whitney(ours, theirs)
    expected = stats.mannwhitneyu(ours, theirs, alternative="less", method="asymptotic", use_continuity=False)
    assert u == expected.statistic
    assert stats.norm.cdf((u - 40 * 70 / 2) / math.sqrt(variance)) == pytest.approx(expected.pvalue)


def test_statistic_is_the_weighted_mean_of_the_z_scores_of_the_cells():
    """Two far cells of 60 and 30 held-out examples: definition 3.2 of the paper, the distances by brute force."""
    far = torch.tensor([100.0, 0.0])
    train = torch.cat([normal(80, 2, 0), normal(80, 2, 1) + far])
    held_out = torch.cat([normal(60, 2, 2), normal(30, 2, 3) + far])
    generated = torch.cat([normal(40, 2, 4), 0.5 * normal(50, 2, 5) + far])
    total = 0.0
    for of_train, of_held_out, of_generated, weight in (
        (train[:80], held_out[:60], generated[:40], 60 / 90),
        (train[80:], held_out[60:], generated[40:], 30 / 90),
    ):
        theirs, ours = (torch.cdist(x, of_train).min(1).values for x in (of_held_out, of_generated))
        n, m = len(ours), len(theirs)
        u = float((ours.unsqueeze(1) > theirs).sum())
        total += weight * (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    found = data_copying(generated, held_out, train, cells=2)
    assert found.cells == 2 and found.covered == 1.0
    assert found.statistic == pytest.approx(total)
    assert found.z == pytest.approx(total / math.sqrt((2 / 3) ** 2 + (1 / 3) ** 2))


def test_z_is_standard_normal_where_model_and_held_out_set_are_one_distribution():
    train = normal(400, 3, 0)
    zs = torch.tensor(
        [data_copying(normal(200, 3, 10_000 + i), normal(200, 3, 20_000 + i), train, cells=3).z for i in range(300)]
    )
    assert abs(float(zs.mean())) < 0.2
    assert 0.88 < float(zs.std()) < 1.12
    assert 0.93 <= float((zs.abs() < 1.96).double().mean()) <= 0.975


def test_copies_are_far_below_zero_and_strays_far_above():
    train, held_out = normal(1000, 8, 0), normal(500, 8, 1)
    copier = data_copying(train[:500] + 0.1 * normal(500, 8, 2), held_out, train)
    stray = data_copying(1.5 * normal(500, 8, 3), held_out, train)
    assert copier.z < -20 and copier.interval[1] < -5 and copier.closer > 0.95
    assert stray.z > 5 and stray.closer < 0.4


def test_copying_in_one_region_shows_though_another_strays():
    """The paper's reason for cells: over all, the distances of the two regions make up for each other."""
    far = torch.tensor([60.0] + [0.0] * 3)
    train = torch.cat([normal(500, 4, 0), normal(500, 4, 1) + far])
    held_out = torch.cat([normal(300, 4, 2), normal(60, 4, 3) + far])
    generated = torch.cat([train[:300] + 0.05 * normal(300, 4, 4), 3 * normal(300, 4, 5) + far])
    assert abs(data_copying(generated, held_out, train, cells=1).closer - 0.5) < 0.1
    assert data_copying(generated, held_out, train, cells=2).z < -10


def test_too_few_examples_give_no_verdict():
    found = data_copying(normal(10, 2, 0), normal(10, 2, 1), normal(30, 2, 2))
    assert (found.statistic, found.cells, found.closer_interval) == (0.0, 0, (0.0, 1.0))


def test_k_means_finds_groups_far_apart():
    groups = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    x = (groups.unsqueeze(1) + normal(300, 2, 0).view(3, 100, 2)).flatten(0, 1)
    centres = k_means(x, 3, seed=0)
    found = centres[nearest(groups, centres).rows[:, 0]]
    torch.testing.assert_close(found, x.view(3, 100, 2).mean(1))


def test_k_means_of_fewer_different_points_than_centres_stops_at_these():
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(10, 1)
    assert sorted(k_means(x, 5, seed=0).flatten().tolist()) == [0.0, 1.0]
