"""Curves: what is drawn, on which axis, and how numbers are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.report.curves import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, charts_of, compact, number


def _history(values, key="train/loss"):
    return [{"step": 10 * i, key: value} for i, value in enumerate(values)]


def test_train_and_validation_share_a_chart_and_losses_come_first():
    history = [{"step": s, "train/lr": 1.0 + s, "train/loss": 2.0 + s, "train/kl_nats": 3.0 + s} for s in range(4)]
    history += [{"step": 2, "validation/loss": 1.0}, {"step": 3, "validation/loss": 0.5}]
    charts = charts_of(history)
    assert [chart.key for chart in charts] == ["loss", "kl_nats", "lr"]
    assert [line.series for line in charts[0].lines] == ["train", "validation"]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([1000, 100, 10, 1], True), ([4, 3, 2, 1], False), ([1000, 10, -1], False), ([5, 5, 5], False)],
)
def test_axis_is_logarithmic_for_positive_values_over_a_wide_range(values, logarithmic):
    assert charts_of(_history(values))[0].logarithmic is logarithmic


def test_a_learning_rate_is_linear_whatever_its_range():
    assert not charts_of(_history([1e-3, 1e-5, 1e-9], "train/lr"))[0].logarithmic


def test_values_that_are_not_finite_or_alone_are_left_out():
    assert charts_of([]) == []
    assert charts_of(_history([1.0])) == []
    (chart,) = charts_of(_history([1.0, math.nan, math.inf, 2.0]))
    assert [point[2] for point in chart.lines[0].points] == [0, 30]


def test_a_long_run_is_thinned_and_keeps_its_ends():
    (chart,) = charts_of(_history([math.sin(i) for i in range(20_000)]))
    points = chart.lines[0].points
    assert len(points) == MOST_POINTS
    assert (points[0][2], points[-1][2]) == (0, 199_990)
    assert chart.lines[0].thin is not None


def test_a_steep_start_does_not_flatten_the_rest():
    (chart,) = charts_of(_history([1000 * math.exp(-i) + 2 + 0.1 * math.sin(i) - 3 for i in range(300)]))
    later = [y for _, y, step, _ in chart.lines[0].points if step > 300]
    assert max(later) - min(later) > 0.3 * (HEIGHT - TOP - BOTTOM)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=15))
@example([0.0, 5e-324])
def test_short_curves_stay_inside_their_frame(values):
    for chart in charts_of(_history(values)):
        for x, y, _, _ in chart.lines[0].points:
            assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(86.4312, "86.43"), (0.018734, "0.01873"), (-90.71, "−90.71"), (21.0, "21"), (12345.6, "12,346"), (0.0, "0")],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(25_000, "25k"), (0.01, "0.01"), (1e-5, "1e-5"), (-3, "−3"), (0, "0")])
def test_axis_numbers_are_short(value, text):
    assert compact(value) == text
