"""How many trials of a campaign run at once, by the processors and GPUs of the cluster."""

from __future__ import annotations

import pytest

from pipeline.errors import SpecError
from pipeline.tuning import campaign as module
from pipeline.tuning.space import load_campaign


@pytest.mark.parametrize(
    ("use_gpu", "workers", "slots", "gpus", "at_once"),
    [
        ("auto", 1, 4, 0, 4),
        ("auto", 1, 4, 2, 2),
        ("auto", 2, 8, 1, 4),  # too few for the workers of one trial: none has one
        ("auto", 2, 8, 5, 2),
        ("true", 1, 4, 3, 3),
        ("false", 1, 4, 3, 4),
    ],
)
def test_as_many_trials_run_at_once_as_have_all_that_they_ask_for(
    monkeypatch: pytest.MonkeyPatch, use_gpu: str, workers: int, slots: int, gpus: int, at_once: int
) -> None:
    monkeypatch.setattr(module, "free_slots", lambda cpus: slots)
    monkeypatch.setattr(module, "gpus", lambda: gpus)
    overrides = [f"trial.num_workers={workers}", "trial.max_concurrent=null", "budget.trials=20"]
    campaign = load_campaign("conf/search/image_vae.yaml", [*overrides, f"set=[training.use_gpu={use_gpu}]"])
    assert module.concurrency(campaign) == at_once


def test_a_campaign_that_wants_gpus_of_a_cluster_that_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would otherwise train on processors without a word, or wait for ever."""
    monkeypatch.setattr(module, "free_slots", lambda cpus: 4)
    monkeypatch.setattr(module, "gpus", lambda: 0)
    campaign = load_campaign("conf/search/image_vae.yaml", ["set=[training.use_gpu=true]"])
    with pytest.raises(SpecError, match=r"use_gpu is true, and a trial takes 1 GPU, of which the cluster has 0"):
        module.concurrency(campaign)
