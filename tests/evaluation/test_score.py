"""Scores of different stamps are not compared, and scores of too few examples are not given."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.errors import ComparisonError
from pipeline.evaluation.intervals import block_numbers, jackknife, share
from pipeline.evaluation.score import Definition, Score, Scores, require_comparable

STAMP = {
    "split": "test",
    "examples": 100,
    "prepared": "abc",
    "seed": 0,
    "code": "0.1.0+1a2b3c4d5e6f",
    "extractor": "classifier-1",
    "extractor_sha256": "0" * 64,
    "generated": 50,
}
RULE = Definition("Some score", "things", "lower", "…", fewest=20, enough=1000)


def score(**changes: object) -> Score:
    return Score(1.0, "things", "lower", {**STAMP, **changes}, (0.5, 1.5))


@pytest.mark.parametrize("key", sorted(STAMP.keys() - {"seed"}))
def test_any_difference_of_the_stamps_is_an_error_that_names_it(key: str) -> None:
    other = score(**{key: "another"})
    assert not score().comparable_with(other)
    with pytest.raises(ComparisonError, match=f"kid: the two were taken in different ways .*{key} .* and 'another'"):
        require_comparable(score(), other, "kid")


def test_a_stamp_that_one_lacks_and_another_unit_are_differences_and_a_seed_is_none() -> None:
    without = replace(score(), protocol={key: value for key, value in STAMP.items() if key != "code"})
    with pytest.raises(ComparisonError, match=r"code '0\.1\.0\+1a2b3c4d5e6f' and None"):
        require_comparable(score(), without)
    with pytest.raises(ComparisonError, match="units 'things' and 'bits'"):
        require_comparable(score(), replace(score(), unit="bits"))
    require_comparable(score(), score(seed=5))


def test_few_examples_are_refused_some_are_given_with_a_caution_and_enough_without() -> None:
    assert "19 examples in the smallest set, and fewer than 20" in (RULE.refusal(19) or "")
    assert RULE.refusal(20) is None
    assert "999 examples" in (RULE.score((1.0, None), STAMP, 999).caution or "")
    assert RULE.score((1.0, None), STAMP, 1000).caution is None


def test_a_caution_survives_json_and_scores_from_before_have_none() -> None:
    few = RULE.score((1.0, (0.5, 1.5)), STAMP, 30)
    assert few.caution and Score.from_dict(json.loads(json.dumps(few.as_dict()))) == few
    old = {key: value for key, value in few.as_dict().items() if key != "caution"}
    assert Score.from_dict(old).caution is None


def test_scores_are_a_dict_that_keeps_why_some_are_missing() -> None:
    scores = Scores({"test/a": score()}, {"test/b": "too few"})
    assert scores == {"test/a": score()} and scores.refused == {"test/b": "too few"}


def test_blocks_are_runs_whose_lengths_differ_by_one_at_most() -> None:
    assert block_numbers(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert block_numbers(4).tolist() == [0, 1, 2, 3]


def test_a_share_of_all_or_none_has_the_interval_of_clopper_and_pearson() -> None:
    """At count 10, 0 of 10: (0, 1 - 0.025^(1/10)) = (0, 0.2589) of the one-sided tail."""
    assert share(jackknife(0.0, [0.0] * 10), 10) == (0.0, (0.0, pytest.approx(0.30850, abs=1e-5)))
    assert share(jackknife(1.0, [1.0] * 10), 10)[1] == (pytest.approx(0.69150, abs=1e-5), 1.0)
