"""Schedule files: cron as crontab(5) has it, and every mistake at once before anything starts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SpecError
from pipeline.operations.cron import make_trigger
from pipeline.operations.schedule_file import (
    ScheduleSpec,
    load_retraining,
    load_schedules,
    metrics_of,
)
from pipeline.spec import load_spec
from tests.conftest import CELLS, cell_spec

CONF = Path("conf").absolute()
# A Thursday.
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def write(folder: Path, name: str = "nightly.yaml", **keys: Any) -> Path:
    tree = {"name": "nightly", "conf": str(CONF / "image_vae.yaml"), "cron": "0 3 * * *", **keys}
    path = folder / name
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def times(cron: str, count: int = 4, timezone: str = "UTC") -> list[str]:
    spec = ScheduleSpec(name="x", cron=cron, timezone=timezone)
    return [f"{time:%a %d %b %H:%M:%S}" for time in spec.next_times(count, NOW)]


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", ["Fri 02 Jan 03:00:00", "Sat 03 Jan 03:00:00"]),
        ("0 3 * * 0", ["Sun 04 Jan 03:00:00", "Sun 11 Jan 03:00:00"]),
        ("0 3 * * 7", ["Sun 04 Jan 03:00:00", "Sun 11 Jan 03:00:00"]),
        ("0 3 * * 1", ["Mon 05 Jan 03:00:00", "Mon 12 Jan 03:00:00"]),
        ("0 3 * * sun", ["Sun 04 Jan 03:00:00", "Sun 11 Jan 03:00:00"]),
        ("0 3 * * 1-5", ["Fri 02 Jan 03:00:00", "Mon 05 Jan 03:00:00"]),
        ("0 3 * * 5-7", ["Fri 02 Jan 03:00:00", "Sat 03 Jan 03:00:00", "Sun 04 Jan 03:00:00", "Fri 09 Jan 03:00:00"]),
        ("0 3 * * fri-mon/2", ["Fri 02 Jan 03:00:00", "Sun 04 Jan 03:00:00", "Fri 09 Jan 03:00:00"]),
        ("0 3 * * */3", ["Sat 03 Jan 03:00:00", "Sun 04 Jan 03:00:00", "Wed 07 Jan 03:00:00"]),
        # Both days restricted: either suffices.
        ("0 0 13 * 5", ["Fri 02 Jan 00:00:00", "Fri 09 Jan 00:00:00", "Tue 13 Jan 00:00:00", "Fri 16 Jan 00:00:00"]),
        ("*/20 * * * * *", ["Thu 01 Jan 12:00:00", "Thu 01 Jan 12:00:20"]),
        ("0 0 29 2 *", ["Tue 29 Feb 00:00:00"]),
    ],
)
def test_cron_fires_when_crontab_would(cron: str, expected: list[str]) -> None:
    assert times(cron, len(expected)) == expected


def test_times_are_those_of_the_zone_over_its_change_of_clocks() -> None:
    spec = ScheduleSpec(name="x", cron="0 3 * * *", timezone="Europe/Berlin")
    march = spec.next_times(3, datetime(2026, 3, 27, 12, tzinfo=UTC))
    assert [time.astimezone(UTC).hour for time in march] == [2, 1, 1]


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 3 * *", "4 fields"),
        ("61 3 * * *", "no cron expression"),
        ("0 3 * * 8", "weekday '8'"),
        ("0 3 * * */0", "weekday"),
        ("hello world x y z", "cron|weekday"),
    ],
)
def test_a_cron_that_is_wrong_or_never_fires_is_refused(cron: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words) as refused:
        load_retraining(write(tmp_path, cron=cron))
    assert "cron: " in str(refused.value)


def test_all_mistakes_of_the_file_and_its_conf_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        cron="0 0 30 2 *",
        timezone="Europe/Berlim",
        trigger={"min_new_share": 2},
        set=["training.lrr=1"],
        warmstart=True,
        misfire={"policy": "never"},
        runs={"kind": "submitt"},
    )
    with pytest.raises(SpecError) as refused:
        load_retraining(path)
    told = str(refused.value)
    for words in (
        "never fires",
        "did you mean 'Europe/Berlin'",
        "trigger.min_new_share",
        "did you mean 'warm_start'",
        "misfire.policy",
        "did you mean 'submit'",
        "did you mean 'lr'",
    ):
        assert words in told, words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compare": {"metric": "nll_nat"}}, "did you mean 'nll_nats'"),
        ({"compare": {"metric": "wasserstein"}}, "does not compare"),
        ({"set": ["registry.name=null"]}, "registry.name is not set"),
        ({"set": ["training.init_from=models:/x/1"]}, "say warm_start in this file"),
        ({"set": ["evaluation.split=validation"]}, "models compare on 'test'"),
        ({"conf": "nothing.yaml"}, "there is no such spec"),
        ({"runs": {"kind": "command", "command": ["true"]}}, "nothing to retrain"),
        ({"runs": {"kind": "submit"}}, "runs.address: this key is needed"),
    ],
)
def test_what_cannot_be_compared_or_run_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        load_retraining(write(tmp_path, **changes))


def test_byte_pairs_fitted_anew_are_refused_before_they_are_trained(tmp_path: Path) -> None:
    path = write(tmp_path, conf=str(CONF / "text_rnn.yaml"), set=["data.codec.kind=bpe"])
    with pytest.raises(SpecError, match="'bpe' is fitted anew"):
        load_retraining(path)


@pytest.mark.parametrize(("family", "modality"), CELLS)
def test_the_default_score_has_a_better_direction_and_every_one_is_known(family: str, modality: str) -> None:
    from pipeline.evaluation.metric import DEFINITIONS

    allowed = metrics_of(cell_spec(family, modality))
    assert bool(allowed) == (family != "gan" or modality != "text")
    assert all(DEFINITIONS[metric].better is not None for metric in allowed)


def test_compare_is_short_for_what_must_improve_and_the_rest_of_the_policy_stays(tmp_path: Path) -> None:
    keep = "release={improve: {elbo_nats: 1}, keep: {frechet: 2, nll_nats: 3}, limits: {frechet: {at_most: 60}}}"
    for compare, improve in (
        ({}, {"elbo_nats": 1}),
        ({"metric": "nll_nats", "min_gain": 0.5}, {"nll_nats": 0.5}),
        ({"min_gain": 2}, {"elbo_nats": 2}),
    ):
        policy = load_retraining(write(tmp_path, set=[keep], compare=compare)).policy
        assert policy.improve == improve
        assert set(policy.keep) == {"frechet", "nll_nats"} - set(improve)
        assert policy.limits["frechet"].at_most == 60
    assert load_retraining(write(tmp_path, compare={})).policy.improve == {"nll_nats": 0}


def test_the_ready_schedules_are_right() -> None:
    schedules = load_schedules(sorted(Path("conf/schedule").glob("*.yaml")))
    assert {schedule.spec.name for schedule in schedules} == {"image-vae-nightly", "text-rnn-weekly"}
    for schedule in schedules:
        assert schedule.retraining is not None
        assert schedule.retraining.base == load_spec(CONF / Path(schedule.retraining.spec.conf).name)


def test_two_schedules_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a.yaml"), write(tmp_path, "b.yaml")]
    with pytest.raises(SpecError, match=r"'nightly' is that of several schedules: .*a\.yaml, .*b\.yaml"):
        load_schedules(paths)


def test_overrides_reach_the_conf(tmp_path: Path) -> None:
    retraining = load_retraining(write(tmp_path, set=["seed=5"]), ["set=[seed=6]", "warm_start=false"])
    assert (retraining.base.seed, retraining.spec.warm_start) == (6, False)


def test_a_trigger_keeps_the_expression_given() -> None:
    assert make_trigger("0 3 * * 1", "UTC").get_next_fire_time(None, NOW).weekday() == 0
