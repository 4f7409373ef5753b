"""Two models on the same blocks: the gain's interval against closed forms, at its nominal rate, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_blocks import measured
from scipy import stats

from pipeline.errors import ComparisonError
from pipeline.evaluation import paired
from pipeline.evaluation.compare import Measured
from pipeline.evaluation.evaluate import evaluate, measure
from pipeline.evaluation.fidelity import distances, moments
from pipeline.evaluation.metric import Interval, Score
from pipeline.evaluation.paired import pair, pair_scores
from pipeline.spec import RunSpec
from tests.evaluation.conftest import MLP, PICTURES, pictures


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return before - after


def interval_of(one: Measured, two: Measured, **options: int) -> Interval:
    found = pair("nll", one, two, **options).interval(difference)
    assert found is not None
    return found


def two_means(generator: torch.Generator, blocks: int = 20, size: int = 10) -> tuple[Measured, Measured]:
    """Two models of equal quality whose errors on an example are alike."""
    shared = torch.randn(blocks * size, generator=generator)
    one, two = (shared + 0.3 * torch.randn(blocks * size, generator=generator) for _ in range(2))
    return measured(one, blocks=blocks), measured(two, blocks=blocks)


def test_the_bootstrap_of_a_mean_is_near_the_interval_of_the_paired_t_test() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, generator=generator).double() + 5, torch.randn(40, generator=generator).double() + 4
    low, high = interval_of(measured(before, blocks=40), measured(after, blocks=40), repeats=20_000)
    by_hand = stats.ttest_rel(before.numpy(), after.numpy()).confidence_interval(0.95)
    width = by_hand.high - by_hand.low
    assert low == pytest.approx(by_hand.low, abs=0.05 * width) and high == pytest.approx(by_hand.high, abs=0.05 * width)


def test_the_jackknife_of_a_mean_is_the_interval_of_the_paired_t_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "LARGEST", 0)
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, generator=generator).double() + 5, torch.randn(40, generator=generator).double() + 4
    one, two = measured(before, blocks=40), measured(after, blocks=40)
    by_hand = stats.ttest_rel(before.numpy(), after.numpy()).confidence_interval(0.95)
    assert interval_of(one, two) == pytest.approx((by_hand.low, by_hand.high), abs=1e-9)
    assert pair("nll", one, two).method == "paired jackknife over 40 blocks"


def test_what_is_hard_for_both_cancels() -> None:
    """Examples differ by ten times more than the models do: apart they look alike, paired they do not."""
    generator = torch.Generator().manual_seed(1)
    hardness = 10 * torch.randn(400, generator=generator)
    before = hardness + 0.5 + 0.1 * torch.randn(400, generator=generator)
    after = hardness + 0.1 * torch.randn(400, generator=generator)
    low, high = interval_of(measured(before), measured(after))
    assert 0.45 < low < 0.5 < high < 0.55


@pytest.mark.parametrize("blocks", [5, 10, 20])
def test_the_interval_of_no_difference_excludes_zero_about_5_times_in_100(blocks: int) -> None:
    generator = torch.Generator().manual_seed(2)
    wrong = 0
    for _ in range(300):
        low, high = interval_of(*two_means(generator, blocks), repeats=200)
        wrong += not low <= 0 <= high
    assert 0.02 <= wrong / 300 <= 0.08


def features(generator: torch.Generator, count: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=generator) + shift


def distance_of(real: torch.Tensor, generated: torch.Tensor, blocks: int = 10) -> Measured:
    """A Fréchet distance between features `[2n, D]` and `[n, D]`, in blocks of moments."""
    half = len(real) // 2
    sets = {"real_a": real[:half], "real_b": real[half:], "generated": generated}
    cut = {which: rows.tensor_split(blocks) for which, rows in sets.items()}
    sums = {
        block: {f"{which}/{name}": value for which in sets for name, value in moments(cut[which][block]).items()}
        for block in range(blocks)
    }
    whole = {name: sum(part[name] for part in sums.values()) for name in sums[0]}
    score = Score(distances(whole)["frechet"], "squared feature distance", "lower")  # type: ignore[arg-type]
    return Measured(score, sums, lambda part: distances(part)["frechet"])


def test_a_distance_between_equal_models_is_not_shifted_by_resampling() -> None:
    """A resample has fewer different examples, which overstates a distance: the interval is centred all the same."""
    generator = torch.Generator().manual_seed(3)
    wrong, signs = 0, 0
    for _ in range(40):
        real = features(generator, 200)
        one, two = (distance_of(real, features(generator, 100, 0.2)) for _ in range(2))
        low, high = interval_of(one, two, repeats=100)
        wrong += not low <= 0 <= high
        signs += one.score.value < two.score.value
    assert wrong <= 5 and 12 <= signs <= 28


def test_unpaired_intervals_add_in_quadrature() -> None:
    one, two = Score(5.0, "", "lower", {}, (4.7, 5.3)), Score(4.0, "", "lower", {}, (3.6, 4.4))
    assert pair_scores("x", one, two).interval(difference) == pytest.approx((0.5, 1.5))
    assert pair_scores("x", replace(one, interval=None), two).interval(difference) is None


def test_scores_of_different_protocols_are_refused_and_a_seed_is_no_difference() -> None:
    one, two = measured(torch.ones(40), examples=40), measured(torch.ones(40), examples=41)
    for refused in (lambda: pair("x", one, two), lambda: pair_scores("x", one.score, two.score)):
        with pytest.raises(ComparisonError, match="examples 40 and 41"):
            refused()
    seeded = replace(one, score=replace(one.score, protocol={**one.score.protocol, "seed": 5}))
    assert pair("x", one, seeded).at(difference) == 0
    with pytest.raises(ComparisonError, match="units 'nats' and 'bits'"):
        pair("x", one, replace(one, score=replace(one.score, unit="bits")))
    with pytest.raises(ComparisonError, match="neither more nor less"):
        pair("x", *[replace(one, score=replace(one.score, better=None))] * 2)
    with pytest.raises(ComparisonError, match="20 blocks and the challenger on 10"):
        pair("x", one, measured(torch.ones(40), blocks=10, examples=40))


def test_too_few_blocks_give_no_interval() -> None:
    found = pair("x", measured(torch.full((8,), 3.0), blocks=4), measured(torch.zeros(8), blocks=4))
    assert found.interval(difference) is None and found.at(difference) == 3


def test_a_block_that_lacks_a_sum_has_none_of_it() -> None:
    one = measured(torch.arange(40.0))
    lacking = replace(one, blocks={number: block if number else {} for number, block in one.blocks.items()})
    assert math.isfinite(interval_of(lacking, lacking)[0])


def test_a_model_against_itself_gains_exactly_nothing(
    spec_of: Callable[..., RunSpec], prepare_small: Callable, bundle_of: Callable
) -> None:
    spec = spec_of(PICTURES, {"kind": "vae", "latent_size": 3}, MLP)
    prepared = prepare_small(spec, {"train": pictures(60), "test": pictures(70, seed=1)})
    bundle = bundle_of(spec, prepared)
    scores = evaluate(spec, prepared, bundle)
    one, two = (measure(spec, prepared, bundle, ["nll_nats", "frechet"]) for _ in range(2))
    for key in ("nll_nats", "frechet"):
        assert one[key].score.value == scores[f"test/{key}"].value
        found = pair(key, one[key], two[key], repeats=200)
        assert found.at(difference) == 0 and found.interval(difference) == (0, 0)
    with pytest.raises(ComparisonError, match="gives no 'bits_per_char'"):
        measure(spec, prepared, bundle, ["bits_per_char"])
