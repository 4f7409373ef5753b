"""The verdict's rules on evidence made by hand."""

from __future__ import annotations

import pytest

from pipeline.evaluation.evidence import GRAM, Evidence, evidence_of, evidence_of_values, exactly
from pipeline.evaluation.metric import Score
from pipeline.evaluation.verdict import QUESTIONS, RULES, Limit, judge, outcome, plus, times, towards


def like_real(value: float, half: float = 0.01) -> Evidence:
    return Evidence(value, (value - half, value + half), value, (value - half, value + half))


REAL = {
    "roughness": like_real(0.2),
    "repeated_share": like_real(0.01),
    "signal_repeated_share": like_real(0.01),
    "singled_out": like_real(0.01),
    "signal_singled_out": like_real(0.01),
    "precision": like_real(0.9),
    "recall": like_real(0.9),
    "density": like_real(1.0),
    "coverage": like_real(0.95),
    "vendi_score": like_real(20.0),
}


def changed(**values: float) -> dict[str, Evidence]:
    """Evidence as of real examples but for some values."""
    return REAL | {
        key: Evidence(value, (value - 0.01, value + 0.01), REAL[key].held_out, None) for key, value in values.items()
    }


def test_what_scores_as_real_examples_do_is_good_varied_and_new():
    verdict = judge(REAL)
    assert verdict.findings == ()
    assert verdict.answers == dict.fromkeys(QUESTIONS, "yes")


@pytest.mark.parametrize(
    ("values", "finding", "question"),
    [
        ({"roughness": 0.9}, "noise", "good"),
        ({"roughness": 0.05}, "blurred", "good"),
        ({"repeated_share": 0.9}, "collapsed", "varied"),
        ({"singled_out": 0.2}, "copies", "new"),
        ({"signal_singled_out": 0.2}, "copies", "new"),
        ({"coverage": 0.0, "recall": 0.0}, "noise", "good"),
        ({"coverage": 0.3, "recall": 0.3, "vendi_score": 8.0}, "collapsed", "varied"),
    ],
)
def test_each_failure_is_named_by_what_shows_it(values, finding, question):
    verdict = judge(changed(**values))
    assert verdict.findings == (finding,)
    assert verdict.answers[question] == "no"
    assert any(reason.startswith(f"{finding}: ") for reason in verdict.reasons[question])


def test_what_explains_a_low_coverage_is_named_alone():
    verdict = judge(changed(coverage=0.0, recall=0.0, roughness=0.05))
    assert verdict.findings == ("blurred",)


def test_poor_samples_need_no_name():
    verdict = judge(changed(precision=0.3))
    assert verdict.findings == ()
    assert verdict.answers["good"] == "no"


def test_nothing_measured_is_unclear():
    assert set(judge({}).answers.values()) == {"unclear"}
    assert judge({key: REAL[key] for key in ("singled_out",)}).answers["good"] == "unclear"


def test_too_few_examples_are_unclear():
    ten = REAL | {"singled_out": Evidence(0.0, (0.0, 0.31), 0.01, None)}
    verdict = judge(ten)
    assert verdict.answers["new"] == "unclear"
    assert "95% 0 to 0.31" in verdict.reasons["new"][0]


def test_words_carry_the_numbers():
    said = judge(changed(singled_out=0.2)).in_words()
    assert (
        "new: no; copies: share of outputs that single out one training example 0.2 (95% 0.19 to 0.21), "
        "held-out 0.01, limit at most 0.05" in said
    )


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (0.2, (0.02, 0.3), "beyond"),
        (0.2, (0.005, 0.5), "between"),
        (0.03, (0.0, 0.08), "within"),
        (0.03, (0.0, 0.2), "between"),
        (0.2, None, "between"),
        (0.03, None, "within"),
    ],
)
def test_outcomes_of_values_and_intervals(value, interval, expected):
    limit = Limit("x", "above", plus(0.04), "x")
    assert outcome(limit, {"x": Evidence(value, interval, 0.01, None)}) == expected


def test_two_of_ten_different_outputs_are_no_proof_of_copying():
    found = judge(REAL | {"singled_out": Evidence(0.2, (0.0266, 0.56), 0.01, None)})
    assert found.findings == () and found.answers["new"] == "unclear"


def test_limits_are_functions_of_the_held_out_value():
    evidence = {"noise": like_real(8.0)}
    assert times(0.5)(0.8, {}) == pytest.approx(0.4)
    assert towards(1.0, 0.25)(0.2, {}) == pytest.approx(0.4)
    assert towards("noise", 0.5)(2.0, evidence) == pytest.approx(5.0)


def test_short_texts_are_copies_only_when_nearly_all_is():
    some = Evidence(0.5, (0.45, 0.55), 0.2, None)
    assert judge({"copied_share": some, GRAM: exactly(25)}).findings == ("copies",)
    assert judge({"copied_share": some, GRAM: exactly(6)}).findings == ()
    assert judge({"copied_share": Evidence(0.95, (0.9, 1.0), 0.2, None), GRAM: exactly(6)}).findings == ("copies",)


def test_evidence_is_made_of_scores_with_their_companions():
    scores = {
        "test/precision": Score(0.8, interval=(0.7, 0.9)),
        "test/precision_ceiling": Score(0.9, interval=(0.85, 0.95)),
        "test/nll_nats": Score(90.0),
        "test/copied_share": Score(0.1, protocol={GRAM: 20}),
        "test/copied_share_held_out": Score(0.05),
    }
    found = evidence_of(scores, "test/")
    assert found == {
        "precision": Evidence(0.8, (0.7, 0.9), 0.9, (0.85, 0.95)),
        "copied_share": Evidence(0.1, None, 0.05, None),
        GRAM: exactly(20),
    }
    assert evidence_of_values({"kid": (0.1, None)}) == {}


def test_every_rule_has_a_reason_and_names_what_it_measures():
    for rule in RULES:
        assert len(rule.why) > 20 and rule.limits
        assert all(limit.words for limit in rule.limits)
