"""The Fréchet distance against its closed form, and its sums over pieces and workers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pipeline.code_version import code_version
from pipeline.errors import TrainingFailedError
from pipeline.evaluation.evaluate import load_subject
from pipeline.evaluation.fidelity import FrechetDistance, distances, frechet_distance, gaussian, moments
from pipeline.evaluation.metric import add
from tests.evaluation.conftest import KEY, MLP, PICTURES, pictures

VAE = {"kind": "vae", "latent_size": 4}


def _spd(size: int, seed: int) -> torch.Tensor:
    a = torch.randn(size, size + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / size


def test_distance_of_diagonal_gaussians_is_the_closed_form():
    """Commuting covariances: |ma - mb|^2 + sum (sqrt a - sqrt b)^2."""
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    a, b = torch.rand(2, 9, dtype=torch.float64, generator=generator)
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(mean_a, a.diag(), mean_b, b.diag()) == pytest.approx(float(expected), abs=1e-12)


def test_distance_of_gaussians_in_two_dimensions_is_the_closed_form():
    """For 2 x 2 matrices tr (Ca Cb)^(1/2) = sqrt(tr(Ca Cb) + 2 sqrt(det(Ca Cb)))."""
    a, b = _spd(2, 1), _spd(2, 2)
    product = a @ b
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    zero = torch.zeros(2, dtype=torch.float64)
    expected = float(a.trace() + b.trace()) - 2 * root
    assert frechet_distance(zero, a, zero, b) == pytest.approx(expected, abs=1e-10)


def test_distance_is_invariant_under_rotation_and_symmetric():
    a, b = _spd(6, 3), _spd(6, 4)
    mean = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    turn, _ = torch.linalg.qr(_spd(6, 6))
    plain = frechet_distance(mean[0], a, mean[1], b)
    turned = frechet_distance(turn @ mean[0], turn @ a @ turn.T, turn @ mean[1], turn @ b @ turn.T)
    assert turned == pytest.approx(plain, rel=1e-11)
    assert frechet_distance(mean[1], b, mean[0], a) == pytest.approx(plain, rel=1e-11)


@pytest.mark.parametrize("rank", [1, 5, 64])
def test_distance_to_itself_is_zero_even_when_singular(rank):
    thin = torch.randn(64, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    covariance, mean = thin @ thin.T, torch.randn(64, dtype=torch.float64)
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-9 * float(covariance.trace())


def test_moments_give_mean_and_covariance():
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    mean, covariance = gaussian(moments(x))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_moments_of_parts_add_up_to_the_whole():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    total = {}
    for part in x.split([3, 17, 30]):
        add(total, moments(part))
    for name, value in moments(x).items():
        torch.testing.assert_close(total[name], value, rtol=1e-12, atol=1e-12)


@dataclasses.dataclass
class Flat:
    """Features that are the pixels themselves."""

    name: str = "pixels"
    sha256: str = "0" * 64
    accuracy: float | None = None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, ::8].double()


@pytest.fixture
def subject(spec_of, prepare_small, bundle_of, short_extractors):
    spec = spec_of(PICTURES, VAE, MLP)
    rows = pictures(101)
    prepared = prepare_small(spec, {"train": [(raw, None) for raw, _ in rows], "test": rows})
    found = load_subject(spec, prepared, bundle_of(spec, prepared), torch.device("cpu"))
    assert found.classifier is None  # nothing to train on without labels
    found.extractor = Flat()
    return found


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_many_workers_give_the_scores_of_one(subject, world_size):
    metric = FrechetDistance()
    whole = metric.finish(metric.measure(subject), subject)
    parts = {}
    for rank in range(world_size):
        add(parts, metric.measure(subject, rank, world_size))
    for name, score in metric.finish(parts, subject).items():
        assert score.value == pytest.approx(whole[name].value, abs=1e-9)
        assert score.interval == pytest.approx(whole[name].interval, abs=1e-9)


def test_a_model_that_copies_real_examples_scores_the_floor(subject):
    """Generated examples that are fresh real ones are as far as one real half from the other."""
    fresh = torch.stack([torch.from_numpy(raw) for raw, _ in pictures(4000, seed=9)]).permute(0, 3, 1, 2) / 255
    taken = iter(range(4000))
    subject.model.sample = lambda count, generator, options: fresh[[next(taken) for _ in range(count)]]
    metric = FrechetDistance()
    scores = metric.finish(metric.measure(subject), subject)
    assert scores["frechet"].value < 3 * scores["frechet_floor"].value
    subject.model.sample = lambda count, generator, options: torch.zeros(count, 1, 8, 8)
    black = metric.finish(metric.measure(subject), subject)
    assert black["frechet"].value > 10 * scores["frechet"].value
    assert black["frechet_floor"] == scores["frechet_floor"]


def test_protocol_says_the_extractor_and_the_counts(subject):
    metric = FrechetDistance()
    score = metric.finish(metric.measure(subject), subject)["frechet"]
    assert (score.protocol["real"], score.protocol["generated"]) == (60, 30)
    assert score.protocol["prepared"] == KEY
    assert score.protocol["code"] == code_version()
    assert score.protocol["extractor"] == "pixels"
    assert score.protocol["extractor_sha256"] == "0" * 64
    assert score.better == "lower"
    assert score.interval is not None


def test_samples_that_are_not_finite_are_refused(subject):
    subject.model.sample = lambda count, generator, options: torch.full((count, 1, 8, 8), math.nan)
    with pytest.raises(TrainingFailedError, match="not finite"):
        FrechetDistance().measure(subject)


def test_distances_of_equal_moments_are_zero():
    found = moments(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    sums = {f"{which}/{name}": value for which in ("real_a", "real_b", "generated") for name, value in found.items()}
    assert distances(sums) == pytest.approx({"frechet": 0, "frechet_floor": 0}, abs=1e-9)
