"""A comparison of runs: side by side, ranked only where that means something."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from report_pages import run_of, score_of
from test_page import Outline

from pipeline.errors import ComparisonError
from pipeline.report.comparison import build_comparison, protocol_differences, spec_differences


def _page(*runs):
    return build_comparison(None, runs, datetime(2026, 1, 2, tzinfo=UTC))


def test_the_page_is_well_formed_escaped_and_the_same_each_time():
    runs = run_of("one<b>", score_of(3.0)), run_of("two", score_of(4.0), seed=1), run_of("sound", modality="audio")
    html = _page(*runs)
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert all(value.startswith(("data:", "#")) for value in outline.fetched)
    assert "one&lt;b&gt;" in html
    assert "one<b>" not in html
    assert html == _page(*runs)


def test_a_run_is_best_where_its_interval_lies_apart():
    html = _page(run_of("one", score_of(3.0, (-0.2, 0.2))), run_of("two", score_of(4.0, (-0.2, 0.2))))
    assert '<span class="name best">one</span>' in html
    assert html.count('class="whisker"') == 2
    assert "Not ranked" not in html
    html = _page(run_of("one", score_of(3.0, (-0.8, 0.8))), run_of("two", score_of(4.0, (-0.8, 0.8))))
    assert "name best" not in html
    assert "The interval of one, the lowest value, meets that of two." in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"examples": 200}, "examples (500 / 200)"), ({"extractor": "d"}, "extractor (c / d)")],
)
def test_scores_of_different_protocols_are_not_ranked_and_the_difference_is_said(changes, said):
    html = _page(run_of("one", score_of(3.0, (-0.1, 0.1))), run_of("two", score_of(9.0, (-0.1, 0.1), **changes)))
    assert f"Not ranked, because these were not taken in the same way: {said}." in html
    assert "name best" not in html
    assert 'class="whisker"' not in html


def test_other_data_is_another_protocol_and_another_seed_is_not():
    one, same, other = (
        run_of("a", score_of(1.0)),
        run_of("b", score_of(2.0, seed=7)),
        run_of("c", score_of(2.0), prepared="77"),
    )
    assert protocol_differences([(run, run.scores["test/frechet"]) for run in (one, same)]) == []
    differing = protocol_differences([(run, run.scores["test/frechet"]) for run in (one, other)])
    assert differing == [("prepared set", ["3f2a", "77"])]


def test_a_run_without_the_score_is_named():
    assert "Without this score: two." in _page(run_of("one", score_of(3.0)), run_of("two"))


def test_only_the_keys_that_differ_are_listed():
    runs = run_of("one"), run_of("two", training={"lr": 0.01}, seed=3)
    found = dict(spec_differences(runs))
    assert list(found) == ["seed", "training.lr"]
    assert found["seed"] == [("one", "0"), ("two", "3")]
    assert "The specs are the same in every key." in _page(run_of("one"), run_of("two"))


def test_curves_of_all_runs_share_their_charts():
    html = _page(run_of("one"), run_of("two"))
    assert re.findall(r"<h3>(\w+ \w+)</h3>", html) == ["validation loss", "train loss"]
    assert html.count('<g class="run0"') == html.count('<g class="run1"') == 2


@pytest.mark.parametrize(
    ("labels", "words"), [(["a"], "2 to 8"), ([str(i) for i in range(9)], "2 to 8"), (["a", "a"], "named twice")]
)
def test_what_cannot_be_compared_is_refused(labels, words):
    with pytest.raises(ComparisonError, match=words):
        _page(*[run_of(label) for label in labels])
