"""The inception score and the Vendi score against closed forms, reference implementations and simulation."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.evaluation.diversity import inception_score, vendi_score
from tests.evaluation.test_kernel_distance import normal


def test_certain_and_equal_classes_score_their_number_and_one_class_scores_one() -> None:
    certain = 100 * torch.eye(7, dtype=torch.float64)
    assert inception_score(certain.repeat(30, 1))[0] == pytest.approx(7, rel=1e-12)
    assert inception_score(certain[:1].repeat(30, 1))[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.zeros(50, 7, dtype=torch.float64)) == (pytest.approx(1), pytest.approx((1, 1)))


def test_inception_score_is_its_definition() -> None:
    p = (2 * normal(60, 4, 1)).softmax(1)
    divergence = [
        sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(row, p.mean(0), strict=True)) for row in p
    ]
    assert inception_score(p.log() + 5)[0] == pytest.approx(math.exp(math.fsum(divergence) / 60), rel=1e-10)


@pytest.mark.parametrize("kinds", [1, 3, 8])
def test_vendi_counts_what_is_entirely_different(kinds: int) -> None:
    """Orthogonal features of any length, equally often."""
    features = torch.eye(8, dtype=torch.float64)[:kinds].repeat(20, 1) * torch.rand(20 * kinds, 1).add(0.1)
    assert vendi_score(features)[0] == pytest.approx(kinds, rel=1e-9)


def test_vendi_is_the_entropy_of_the_whole_similarity_matrix() -> None:
    """Friedman and Dieng (2023), definition 3.1, by the N x N matrix."""
    features = normal(40, 9, 2, 0.5)
    unit = features / features.norm(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / 40).clamp(min=1e-15)
    assert vendi_score(features)[0] == pytest.approx(
        math.exp(-float((eigenvalues * eigenvalues.log()).sum())), rel=1e-9
    )


def test_copies_add_no_diversity() -> None:
    features = normal(50, 6, 3)
    assert vendi_score(features.repeat(3, 1))[0] == pytest.approx(vendi_score(features)[0], rel=1e-9)


def test_intervals_cover_the_truth() -> None:
    """Classes drawn with known shares: exp of their entropy is the truth of both scores, over orthogonal features and
    certain logits. Its estimate is biased down by (K - 1) / 2N nats, a fifth of its deviation here."""
    shares = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)
    truth = math.exp(-float((shares * shares.log()).sum()))
    generator = torch.Generator().manual_seed(0)
    hits = {"inception": 0, "vendi": 0}
    for _ in range(200):
        kinds = torch.eye(4, dtype=torch.float64)[torch.multinomial(shares, 1000, True, generator=generator)]
        for name, (_, interval) in (("inception", inception_score(100 * kinds)), ("vendi", vendi_score(kinds))):
            assert interval is not None
            hits[name] += interval[0] <= truth <= interval[1]
    assert all(186 <= count <= 194 for count in hits.values())
