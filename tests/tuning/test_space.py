"""Campaign files: what they mean, and every mistake found before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.models import FAMILIES
from pipeline.tuning.space import OBJECTIVES, load_campaign

CONFS = sorted(Path("conf/search").glob("*.yaml"))

GOOD: dict[str, Any] = {
    "name": "try",
    "conf": str(Path("conf/image_vae.yaml").resolve()),
    "space": {
        "training.lr": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
        "model.family.latent_size": {"kind": "choice", "values": [8, 32]},
    },
    "trial": {"steps": 100, "report_every": 20},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_the_ready_campaigns_hold_together_and_start_with_their_conf(path: Path) -> None:
    campaign = load_campaign(path)
    assert campaign.own_values() is not None
    assert campaign.objective.startswith("validation/")


def test_there_is_a_ready_campaign_for_each_family() -> None:
    assert {load_campaign(path).base.model.family.kind for path in CONFS} == {family for family, _ in FAMILIES}


def test_objectives_are_known_for_every_family() -> None:
    assert set(OBJECTIVES) == {family for family, _ in FAMILIES}


def test_a_trial_is_short_without_a_time_limit_and_reports_to_the_schedule(tmp_path: Path) -> None:
    spec = load_campaign(written(tmp_path)).trial_spec({"training.lr": 0.002, "model.family.latent_size": 8})
    assert (spec.training.lr, spec.model.family.latent_size) == (0.002, 8)  # type: ignore[union-attr]
    assert (spec.training.steps, spec.training.max_seconds, spec.training.validate_every) == (100, None, 20)


def test_the_winner_has_the_length_of_the_conf(tmp_path: Path) -> None:
    campaign = load_campaign(written(tmp_path, winner=["training.max_seconds=7"]))
    spec = campaign.winner_spec({"training.lr": 0.002})
    assert (spec.training.steps, spec.training.max_seconds) == (campaign.base.training.steps, 7)
    assert spec.training.lr == 0.002


def test_an_elbo_is_better_when_higher(tmp_path: Path) -> None:
    assert load_campaign(written(tmp_path, objective="validation/elbo_nats")).mode == "max"
    assert load_campaign(written(tmp_path)).mode == "min"


def one_range(**changes: Any) -> dict[str, Any]:
    return {"space": {"training.lr": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2, **changes}}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": {"training.lrr": {"kind": "uniform", "low": 0.1, "high": 1}}}, "did you mean 'training.lr'?"),
        (one_range(low=1e-2, high=1e-4), "nothing to draw"),
        (one_range(low=1e-2, high=1e-2), "nothing to draw"),
        (one_range(low=-1.0), "has no logarithm"),
        (one_range(kind="loguniform"), "did you mean 'log_uniform'?"),
        ({"space": {"model.family.latent_size": {"kind": "choice", "values": []}}}, "at least 1 item"),
        ({"space": {}}, "at least 1 item"),
        ({"space": {"data.codec.channels": {"kind": "choice", "values": [1, 3]}}}, "share one prepared set"),
        ({"space": {"training.steps": {"kind": "integer", "low": 1, "high": 9}}}, "set it under 'trial'"),
        (
            {"space": {"model.family.latent_size": {"kind": "integer", "low": 0, "high": 8}}},
            "greater than or equal to 1",
        ),
        ({"space": {"training.optimizer": {"kind": "choice", "values": ["adam", "lion"]}}}, "lion"),
        ({"objective": "validation/perplexity"}, "validation of a vae yields validation/nll_nats"),
        ({"objective": "validation/nll"}, "did you mean 'validation/nll_nats'?"),
        ({"objective": "validation/kl_nats"}, "validation of a vae yields"),
        ({"trial": {"steps": 10, "report_every": 20}}, "no report would come"),
        ({"scheduler": {"kind": "asha"}}, "grace_steps"),
        ({"budgets": {"trials": 3}}, "did you mean 'budget'?"),
        ({"conf": "no/such.yaml"}, "there is no such spec"),
        ({"set": ["training.batchsize=3"]}, "did you mean 'batch_size'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_told_before_anything_starts(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_campaign(written(tmp_path, **changes))
    assert told in str(raised.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    space = {"training.lrr": {"kind": "uniform", "low": 0.1, "high": 1}, **one_range()["space"]}
    with pytest.raises(SpecError, match="2 mistakes"):
        load_campaign(written(tmp_path, space=space, objective="validation/perplexity"))


def test_a_distance_is_not_measured_in_trials_of_several_workers() -> None:
    with pytest.raises(SpecError, match="trials of one worker"):
        load_campaign("conf/search/audio_gan.yaml", ["trial.num_workers=2"])
