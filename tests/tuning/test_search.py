"""The search: what is proposed is a function of the campaign and the trials before."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError, TrainingFailedError
from pipeline.storage import open_store
from pipeline.tuning.ledger import Ledger, Trial, campaign_key
from pipeline.tuning.search import propose
from pipeline.tuning.space import Campaign, load_campaign


def campaign_of(*overrides: str) -> Campaign:
    return load_campaign("conf/search/image_vae.yaml", list(overrides))


def run(campaign: Campaign, count: int) -> list[Trial]:
    """Trials whose objective is least at a learning rate of 1e-3."""
    trials: list[Trial] = []
    for number in range(count):
        values = propose(campaign, number, trials)
        distance = abs(math.log10(values["training.lr"]) + 3)
        trials.append(Trial(number, values, "finished", reports=[(100, distance + 1), (900, distance)]))
    return trials


def test_the_conf_itself_is_the_first_trial() -> None:
    assert propose(campaign_of(), 0, []) == {"training.lr": 3e-3, "model.family.latent_size": 32}


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_proposals_repeat_and_lie_in_the_space(kind: str) -> None:
    campaign = campaign_of(f"search.kind={kind}")
    trials = run(campaign, 10)
    assert [t.values for t in trials] == [t.values for t in run(campaign, 10)]
    for trial in trials:
        assert all(dimension.holds(trial.values[key]) for key, dimension in campaign.spec.space.items())
    assert len({t.values["training.lr"] for t in trials}) == 10


def test_another_seed_proposes_other_values() -> None:
    assert propose(campaign_of(), 1, []) != propose(campaign_of("search.seed=1"), 1, [])


def test_the_estimator_comes_nearer_than_chance() -> None:
    def mean_distance(kind: str) -> float:
        runs = [run(campaign_of(f"search.kind={kind}", f"search.seed={seed}"), 30) for seed in range(3)]
        late = [trial.objective or 0.0 for trials in runs for trial in trials[15:]]
        return sum(late) / len(late)

    assert mean_distance("tpe") < 0.7 * mean_distance("random")


@pytest.mark.parametrize("status", ["running", "failed", "pruned"])
def test_trials_of_every_status_are_taken_into_account(status: Any) -> None:
    trials = [
        *run(campaign_of(), 6),
        Trial(6, {"training.lr": 1e-3, "model.family.latent_size": 8}, status, reports=[(100, 1.0)]),
    ]
    assert propose(campaign_of(), 7, trials)["training.lr"] > 0


def test_a_ledger_gives_back_what_was_written_and_refuses_what_was_edited(tmp_path: Path) -> None:
    ledger = Ledger(open_store(str(tmp_path)), "c-1")
    trials = run(campaign_of(), 3)
    for trial in trials:
        ledger.write(trial)
    assert ledger.trials() == trials
    (tmp_path / "campaigns/c-1/trials/0001.json").write_text('{"number": 1, "valuess": {}}')
    with pytest.raises(StorageError, match=r"0001\.json: not a trial as this campaign wrote it"):
        ledger.trials()


def test_an_unfinished_campaign_is_gone_on_with_and_a_finished_one_is_not(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    first = campaign_key(store, "c", {"a": 1})
    Ledger(store, first).update(status="running")
    assert campaign_key(store, "c", {"a": 1}) == first
    assert campaign_key(store, "c", {"a": 2}) != first
    Ledger(store, first).update(status="finished")
    assert campaign_key(store, "c", {"a": 1}) == f"{first.removesuffix('1')}2"


def test_the_best_is_among_those_that_ran_to_their_end() -> None:
    from pipeline.tuning.campaign import framework_seconds
    from pipeline.tuning.search import best_of

    trials = run(campaign_of(), 4)
    lucky = Trial(4, {}, "pruned", reports=[(100, -1.0)])
    best = best_of(campaign_of(), [*trials, lucky])
    assert best.objective == min(t.objective or 0.0 for t in trials)
    with pytest.raises(TrainingFailedError, match="none of 1 trials"):
        best_of(campaign_of(), [lucky])
    timed = [
        dataclasses.replace(t, process=p, seconds=s, training_seconds=1.0)
        for t, p, s in zip(trials, "aabb", (9, 2, 9, 4), strict=True)
    ]
    assert framework_seconds(timed) == 2.0


def test_the_first_trial_is_never_pruned_and_rungs_are_known_after_a_restart() -> None:
    from types import SimpleNamespace

    from pipeline.tuning.under_tune import make_scheduler

    good = [Trial(n, {}, "finished", reports=[(600, 1.0), (1800, 0.5), (3000, 0.2)]) for n in range(1, 4)]
    scheduler = make_scheduler(campaign_of(), good)
    scheduler.set_search_properties("validation/nll_nats", "min")

    def decision(number: int) -> str:
        trial = SimpleNamespace(trial_id=f"new-{number}", config={"number": number})
        scheduler.on_trial_add(None, trial)
        return str(scheduler.on_trial_result(None, trial, {"step": 600, "validation/nll_nats": 9.0}))

    assert decision(0) == "CONTINUE"
    assert decision(5) == "STOP", "the restarted scheduler does not know what trials reached before"
