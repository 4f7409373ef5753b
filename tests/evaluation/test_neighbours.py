"""Nearest neighbours in chunks against all distances at once."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluation import neighbours
from pipeline.evaluation.neighbours import nearest


def normal(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("numbers", [1, 1000, neighbours.CHUNK_NUMBERS])
def test_chunks_of_any_size_give_what_all_distances_give(monkeypatch, numbers):
    monkeypatch.setattr(neighbours, "CHUNK_NUMBERS", numbers)
    queries, references = normal(37, 5, 0), normal(53, 5, 1)
    expected = torch.cdist(queries, references).sort(dim=1)
    found = nearest(queries, references, 4)
    torch.testing.assert_close(found.distances, expected.values[:, :4])
    assert torch.equal(found.rows, expected.indices[:, :4])


def test_an_excluded_reference_does_not_count():
    x = normal(30, 3, 0)
    apart = torch.cdist(x, x).fill_diagonal_(torch.inf)
    found = nearest(x, x, exclude=torch.arange(30))
    torch.testing.assert_close(found.distances[:, 0], apart.min(1).values)


def test_the_distance_of_a_copy_far_from_the_origin_is_exact():
    references = normal(100, 16, 0) + 1e6
    found = nearest(references[:10] + 1e-4, references)
    torch.testing.assert_close(found.distances[:, 0], torch.full((10,), 4e-4, dtype=torch.float64), rtol=1e-5, atol=0)
    assert float(nearest(references[:10], references).distances.max()) == 0.0


def test_single_precision_finds_the_same():
    queries, references = normal(50, 20, 0).float(), normal(400, 20, 1).float()
    exact = nearest(queries.double(), references.double(), 3)
    found = nearest(queries, references, 3)
    assert torch.equal(found.rows, exact.rows)
    torch.testing.assert_close(found.distances, exact.distances, rtol=1e-5, atol=0)


def test_more_neighbours_than_references_are_refused():
    with pytest.raises(ValueError, match="3 nearest of 2 references"):
        nearest(normal(2, 2, 0), normal(2, 2, 1), 3)
