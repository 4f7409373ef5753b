"""Fine detail and repeats against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.evaluation.detail import DEFINITIONS_OF_DETAIL, contrast, measure_detail, median, roughness
from pipeline.evaluation.novelty import SIGNAL
from pipeline.evaluation.repeats import DEFINITIONS_OF_REPEATS, likeness_to_another, measure_repeats


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_roughness_of_an_autoregression_is_one_minus_its_coefficient(phi):
    noise = normal(8, 20_000)
    x = torch.zeros_like(noise)
    for t in range(1, x.shape[1]):
        x[:, t] = phi * x[:, t - 1] + noise[:, t]
    assert roughness(x.unsqueeze(1)).mean() == pytest.approx(1 - phi, abs=0.02)


def test_roughness_ignores_brightness_and_contrast_and_is_zero_of_a_flat_picture():
    x = normal(3, 2, 9, 9)
    torch.testing.assert_close(roughness(4 * x + 7), roughness(x))
    assert roughness(torch.full((1, 1, 5, 5), 0.3)).item() == 0.0


def test_roughness_of_a_blurred_picture_is_lower_and_contrast_is_the_deviation():
    x = normal(5, 1, 32, 32)
    assert bool((roughness(F.avg_pool2d(x, 3, 1, 1)) < 0.5 * roughness(x)).all())
    torch.testing.assert_close(contrast(x), x.flatten(1).var(1, correction=0).sqrt())


def test_the_interval_of_the_median_covers_it_in_95_of_100():
    covered = 0
    for trial in range(400):
        _, (low, high) = median(normal(101, seed=trial + 50_000).exp())
        covered += low <= 1 <= high
    assert 0.93 <= covered / 400 <= 0.99


def test_likeness_to_another_is_that_of_all_distances():
    x = normal(40, 6)
    squares = torch.cdist(x, x).square()
    around = (squares.sum(1) / 39).sqrt()
    expected = squares.fill_diagonal_(torch.inf).min(1).values.sqrt() / around
    torch.testing.assert_close(likeness_to_another(x), expected)


def test_few_outputs_repeat_and_independent_ones_do_not():
    held_out = normal(600, 8)
    few = normal(10, 8, seed=1).repeat(60, 1) + 0.01 * normal(600, 8, seed=2)
    found = measure_repeats(few, held_out)
    assert found["repeated_share"][0] == 1.0
    fresh, fresh_interval = measure_repeats(normal(600, 8, seed=3), held_out)["repeated_share"]
    assert fresh < 0.03 and fresh_interval[1] < 0.06
    assert measure_repeats(0.2 * normal(600, 8, seed=3), held_out)["repeated_share"][0] == fresh


def test_every_score_has_a_definition():
    pictures = normal(30, 1, 6, 6)
    assert measure_detail(pictures, pictures).keys() == DEFINITIONS_OF_DETAIL.keys()
    flat = pictures.flatten(1)
    assert (measure_repeats(flat, flat) | measure_repeats(flat, flat, SIGNAL)).keys() == DEFINITIONS_OF_REPEATS.keys()
