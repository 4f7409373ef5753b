"""Sums that merge, intervals that cover, scores that know with what they compare."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats

from pipeline.evaluation.metric import (
    Score,
    add,
    blocks_of,
    in_block,
    student_t_975,
    total_of,
    with_intervals,
)


@pytest.mark.parametrize("degrees", [4, 9, 19, 100])
def test_student_quantile_agrees_with_scipy(degrees):
    assert student_t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=3e-3)


def _blocks(x: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"sum": part.sum(), "n": torch.tensor(float(len(part)), dtype=torch.float64)} for part in x.tensor_split(count)
    ]


def test_interval_of_a_mean_is_that_of_student():
    """With a block an example, the jackknife of a mean is its classical standard error."""
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, interval = with_intervals(_blocks(x, 40), lambda s: {"mean": float(s["sum"] / s["n"])})["mean"]
    half = student_t_975(39) * float(x.std()) / math.sqrt(40)
    assert value == pytest.approx(float(x.mean()), abs=1e-12)
    assert interval == pytest.approx((value - half, value + half), abs=1e-9)


def test_interval_covers_the_truth_about_95_times_in_100():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(300):
        x = torch.randn(200, dtype=torch.float64, generator=generator).exp()
        _, interval = with_intervals(_blocks(x, 20), lambda s: {"log": math.log(s["sum"] / s["n"])})["log"]
        assert interval is not None
        hits += interval[0] <= 0.5 <= interval[1]
    assert 0.89 <= hits / 300 <= 0.98


def test_few_blocks_give_no_interval():
    assert with_intervals(_blocks(torch.ones(8), 4), lambda s: {"n": float(s["n"])}) == {"n": (8.0, None)}


def test_blocks_come_back_in_order_and_add_up():
    total = {}
    for block in (11, 2, 11):
        add(total, in_block(block, {"n": torch.tensor(float(block))}))
    assert [float(part["n"]) for part in blocks_of(total)] == [2, 22]
    assert float(total_of(blocks_of(total))["n"]) == 24


def test_score_survives_json():
    score = Score(1.5, "nats", "lower", {"examples": 3}, (1.0, 2.0))
    assert Score.from_dict(json.loads(json.dumps(score.as_dict()))) == score


def test_only_scores_of_one_protocol_compare():
    score = Score(1.0, "nats", "lower", {"examples": 3, "seed": 0})
    assert score.comparable_with(Score(2.0, "nats", "lower", {"examples": 3, "seed": 1}))
    assert not score.comparable_with(Score(2.0, "nats", "lower", {"examples": 4, "seed": 0}))
    assert not score.comparable_with(Score(2.0, "bits", "lower", {"examples": 3, "seed": 0}))
