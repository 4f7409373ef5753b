"""The gate: what the policy asks is asked of both models on the same examples, at error rates that hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from measured_blocks import measured

from pipeline.errors import ComparisonError, SpecError
from pipeline.evaluation.metric import Score
from pipeline.release.gate import Decision, Evidence, decide
from pipeline.release.policy import policy_of
from pipeline.spec import ReleaseSpec, load_spec

EXAMPLES, NATS, SPREAD, NOISE = 500, 100.0, 20.0, 8.0
"""Held-out examples of about 100 nats, whose difficulty spreads by 20 and which two models find differently by 8."""


def policy(**keys: Any) -> ReleaseSpec:
    return ReleaseSpec.model_validate({"improve": {"test/nll_nats": 0.0}, "repeats": 200, **keys})


def evidence(values: torch.Tensor, findings: tuple[str, ...] = (), **scores: float) -> Evidence:
    named = {f"test/{name}": Score(value, "", "lower", {}, (value - 1, value + 1)) for name, value in scores.items()}
    return Evidence(named, {"nll_nats": measured(values)}, findings)


def flat(value: float, **more: Any) -> Evidence:
    """A model with the same score on every example."""
    return evidence(torch.full((100,), value), **more)


# --- rules ----------------------------------------------------------------------------------------------------


def test_a_gain_above_what_is_asked_promotes_and_says_by_how_much() -> None:
    found = decide(policy(improve={"nll_nats": 0.5}), flat(4.0), flat(5.0))
    assert found.outcome == "promote"
    assert found.reason == "nll_nats 5.0000 to 4.0000 nats: gain 1.0000 (95% 1.0000 to 1.0000), above 0.5"
    assert found.comparison is not None and found.comparison.gain == 1
    assert "| improve | `nll_nats` | gain above 0.5 | 5 | 4 | 1 (1 to 1) | met |" in found.table()
    json.dumps(found.as_dict())


def test_a_gain_below_what_is_asked_holds() -> None:
    found = decide(policy(improve={"nll_nats": 1.5}), flat(4.0), flat(5.0))
    assert found.outcome == "hold" and "not above 1.5 with 95% confidence" in found.reason


@pytest.mark.parametrize(("share", "outcome"), [("19%", "promote"), ("21%", "hold")])
def test_a_margin_may_be_a_share_of_the_champions_score(share: str, outcome: str) -> None:
    assert decide(policy(improve={"nll_nats": share}), flat(4.0), flat(5.0)).outcome == outcome


def test_a_score_that_may_not_worsen_holds_what_gains_elsewhere() -> None:
    keeps = policy(keep={"kid": 0.2})
    for after, outcome in ((1.05, "promote"), (1.5, "hold")):
        new, old = flat(4.0), flat(5.0)
        new, old = (
            Evidence({}, {**one.measured, "kid": measured(torch.full((100,), value))}, ())
            for one, value in ((new, after), (old, 1.0))
        )
        found = decide(keeps, new, old)
        assert found.outcome == outcome
    assert "kid 1.0000 to 1.5000" in found.reason and "may be worse by more than 0.2" in found.reason


def test_a_copier_with_the_best_distance_is_rejected() -> None:
    distances = policy(improve={"frechet": 0.0}, limits={"authenticity": {"at_least": 0.3}})
    copier = Evidence(
        {"test/authenticity": Score(0.02, "share", "higher")},
        {"frechet": measured(torch.full((100,), 0.01))},
        ("copies",),
    )
    found = decide(distances, copier, Evidence(measured={"frechet": measured(torch.full((100,), 90.0))}))
    assert found.outcome == "reject"
    assert found.reason == (
        "copies: it gives back training examples; authenticity is 0.02 share and must be at least 0.3"
    )
    # The gain is in the table all the same.
    assert found.comparison is not None and found.comparison.gain > 80


@pytest.mark.parametrize("finding", ["copies", "collapsed", "blurred", "noise"])
def test_a_finding_rejects_where_the_policy_says_so(finding: str) -> None:
    better = flat(4.0, findings=(finding,))
    assert decide(policy(reject=[finding]), better, flat(5.0)).outcome == "reject"
    assert decide(policy(reject=[]), better, flat(5.0)).outcome == "promote"


def test_a_limit_is_of_the_challenger_alone_and_rejects() -> None:
    bounded = policy(limits={"test/frechet": {"at_most": 60}})
    assert decide(bounded, flat(4.0, frechet=59.0), flat(5.0)).outcome == "promote"
    found = decide(bounded, flat(4.0, frechet=61.0), flat(5.0))
    assert (found.outcome, found.reason) == ("reject", "frechet is 61 and must be at most 60")
    broken = decide(bounded, flat(4.0, frechet=float("nan")), flat(5.0))
    assert broken.outcome == "reject"


def test_what_was_not_measured_holds() -> None:
    found = decide(policy(limits={"authenticity": {"at_least": 0.3}}), flat(4.0), flat(5.0))
    assert (found.outcome, found.reason) == ("hold", "authenticity was not measured, and must be at least 0.3")
    found = decide(policy(improve={"nll_nats": 0, "kid": 0}), flat(4.0), flat(5.0))
    assert (found.outcome, found.reason) == ("hold", "kid was not measured of both models")


def test_a_score_without_blocks_is_compared_by_its_interval() -> None:
    by_score = policy(improve={"fad": 0.0})
    for before, outcome in ((5.0, "promote"), (3.0, "hold")):  # intervals of ±1 each: the gain's is ±1.41
        found = decide(by_score, flat(4.0, fad=2.0), flat(5.0, fad=before))
        assert found.outcome == outcome and found.comparison is not None
        assert found.comparison.method.endswith("unpaired")


def test_too_few_blocks_hold() -> None:
    few = [Evidence(measured={"nll_nats": measured(torch.full((8,), value), blocks=4)}) for value in (0.0, 3.0)]
    found = decide(policy(), *few)
    assert found.outcome == "hold" and "too few for an interval" in found.reason


def test_without_a_champion_limits_and_findings_decide() -> None:
    bounded = policy(limits={"frechet": {"at_most": 60}})
    outcomes = [
        decide(bounded, flat(4.0, frechet=value, findings=findings), None).outcome
        for value, findings in ((50.0, ()), (70.0, ()), (50.0, ("copies",)))
    ]
    assert outcomes == ["promote", "reject", "reject"]
    assert decide(bounded, flat(4.0), None).outcome == "hold"
    assert decide(ReleaseSpec(), Evidence(), None) == Decision("promote", "nothing speaks against it", ())


def test_scores_taken_in_different_ways_are_not_compared() -> None:
    other = Evidence(measured={"nll_nats": measured(torch.full((100,), 4.0), examples=99)})
    with pytest.raises(ComparisonError, match="taken in different ways"):
        decide(policy(), other, flat(5.0))


# --- the policy in the spec -----------------------------------------------------------------------------------


def test_a_spec_without_a_policy_improves_its_familys_objective() -> None:
    for conf, objective in (("image_vae", "nll_nats"), ("text_rnn", "nats_per_token"), ("audio_gan", "frechet")):
        assert policy_of(load_spec(f"conf/{conf}.yaml")).improve == {objective: 0.0}


def test_a_policy_is_read_from_the_spec_and_its_mistakes_are_told() -> None:
    spec = load_spec("conf/image_vae.yaml", ["release.improve={test/nll_nats: 5%}", "release.keep={frechet: 2.5}"])
    assert policy_of(spec).improve == {"test/nll_nats": "5%"}
    for override, words in (
        ("release.improve={nll_nats: -1}", "not below 0"),
        ("release.improve={nll_nats: five}", "is no margin"),
        ("release.limits={frechet: {}}", "a limit needs at_least or at_most"),
        ("release.limits={frechet: {at_least: 3, at_most: 2}}", "nothing is within"),
        ("release.reject=[copy]", "'copies', 'collapsed', 'blurred' or 'noise'"),
        ("release={improve: {test/a: 0}, keep: {a: 0}}", "in improve and in keep"),
        ("release.limits={test/a: {at_most: 1}, a: {at_most: 2}}", "name each once"),
        ("release.keeps={}", "did you mean 'keep'"),
    ):
        with pytest.raises(SpecError, match=words):
            load_spec("conf/image_vae.yaml", [override])


# --- error rates ----------------------------------------------------------------------------------------------


def outcomes(better: float, repeats: int, scores: tuple[str, ...] = ("nll_nats",), seed: int = 0) -> list[str]:
    """What the gate says, `repeats` times, of a challenger that is better by the share `better` in all of `scores`."""
    generator = torch.Generator().manual_seed(seed)
    asked = policy(improve=dict.fromkeys(scores, 0.0))
    found = []
    for _ in range(repeats):
        both: list[dict[str, Any]] = [{}, {}]
        for score in scores:
            hardness = NATS + SPREAD * torch.randn(EXAMPLES, generator=generator)
            for model, mean in enumerate((1.0, 1.0 - better)):
                noise = NOISE * torch.randn(EXAMPLES, generator=generator)
                both[model][score] = measured(mean * hardness + noise)
        found.append(decide(asked, Evidence(measured=both[1]), Evidence(measured=both[0])).outcome)
    return found


def test_models_of_equal_quality_are_held_in_95_of_100() -> None:
    assert outcomes(0.0, 100).count("hold") >= 95


def test_a_model_better_by_5_percent_is_promoted_in_80_of_100() -> None:
    assert outcomes(0.05, 100).count("promote") >= 80


def test_several_required_scores_do_not_pile_up_the_error() -> None:
    assert outcomes(0.0, 60, ("nll_nats", "kid", "fad")).count("hold") >= 59
    assert outcomes(0.05, 40, ("nll_nats", "kid", "fad")).count("promote") >= 32


@pytest.mark.slow
def test_the_rates_hold_over_a_thousand_repeats() -> None:
    assert outcomes(0.0, 1000, seed=1).count("promote") <= 40  # 25 are expected, with a deviation of 5
    assert outcomes(0.05, 1000, seed=1).count("promote") >= 950
