"""Campaigns on a real Ray: a driver that is killed, and the two ways in which nested trials used to hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.storage import open_store
from pipeline.tuning.ledger import Ledger, Trial
from tests.command_line import run_here

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
TINY = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    "training.batch_size=16",
    "evaluation.nll_samples=5",
    "evaluation.samples=50",
    "training.threads_per_worker=1",
]


def campaign_file(folder: Path, **changes: Any) -> Path:
    """A campaign of tiny trials; the winner trains for 40 steps."""
    spec: dict[str, Any] = {
        "name": "tiny",
        "conf": str(ROOT / "conf/image_vae.yaml"),
        "set": [f"storage={folder}/storage", "training.steps=40", *TINY],
        "space": {"training.lr": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}},
        "scheduler": {"kind": "none"},
        "trial": {"steps": 40, "report_every": 20},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def trials_of(storage: Path) -> list[Trial]:
    keys = os.listdir(storage / "campaigns") if (storage / "campaigns").exists() else []
    assert len(keys) <= 1, keys
    return Ledger(open_store(str(storage)), keys[0]).trials() if keys else []


def test_a_campaign_whose_driver_is_killed_goes_on_and_counts_every_trial_once(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray
    from mlflow import MlflowClient

    trial = {"steps": 400, "report_every": 50, "max_concurrent": 2}
    path = campaign_file(tmp_path, trial=trial, budget={"trials": 6})
    storage = tmp_path / "storage"
    command = [sys.executable, "-m", "jobs", "tune", str(path)]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    first = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 240
        while sum(trial.status == "finished" for trial in trials_of(storage)) < 2:
            assert first.poll() is None, first.stderr.read().decode() if first.stderr else ""
            assert time.monotonic() < deadline, "no two trials finished"
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    before = {trial.number: trial for trial in trials_of(storage)}
    done = {number for number, trial in before.items() if trial.status == "finished"}
    assert 2 <= len(done) < 6

    code, answer, errors = run_here("tune", str(path))
    assert code == 0, errors
    after = trials_of(storage)
    assert [trial.number for trial in after] == list(range(6))
    assert answer["trials"] == {"finished": 6}
    for trial in after:
        if trial.number in done:
            assert trial == before[trial.number], "a finished trial was run again"
        assert [step for step, _ in trial.reports] == list(range(50, 401, 50))
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("atelier")
    runs = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{answer['run_id']}'")
    numbers = sorted(int(run.data.tags["atelier.trial"]) for run in runs if "atelier.trial" in run.data.tags)
    assert numbers == list(range(6)), "a child run each, and one only"
    assert len(runs) == 7, "the winner's run is the campaign's child too"
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/nll_nats")]
        assert run.info.status == "FINISHED" and steps == sorted(set(steps))
    assert [v.version for v in client.search_model_versions("name = 'image-vae'")] in ([1], ["1"])
    assert client.get_run(answer["run_id"]).info.status == "FINISHED"


NESTED = """
import json, sys, time
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
from pipeline.tuning.campaign import concurrency, tune_job
from pipeline.tuning.space import load_campaign
campaign = load_campaign(sys.argv[1])
slots = concurrency(campaign)
outcome = tune_job(campaign)
deadline = time.monotonic() + 30
while time.monotonic() < deadline and ray.available_resources().get("CPU", 0) < 2:
    time.sleep(0.5)
groups = ray.util.placement_group_table().values()
held = [group for group in groups if group["state"] != "REMOVED"]
print(json.dumps({**vars(outcome), "slots": slots, "held": len(held), "free": ray.available_resources().get("CPU", 0)}))
ray.shutdown()
"""


def test_nested_trials_end_on_a_full_machine_and_when_one_is_pruned_while_its_workers_train(tmp_path: Path) -> None:
    """Two workers a trial on two processors; the second of three trials learns nothing and is ended at its first
    report, with 380 steps before it."""
    path = campaign_file(
        tmp_path,
        space={"training.lr": {"kind": "choice", "values": [1.5e-3, 1e-9]}},
        search={"kind": "random", "seed": 0},
        budget={"trials": 3},
        scheduler={"kind": "asha", "grace_steps": 20, "reduction_factor": 2},
        trial={"steps": 400, "report_every": 20, "num_workers": 2, "max_concurrent": 2},
    )
    script = tmp_path / "nested.py"
    script.write_text(NESTED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    result = subprocess.run(
        [sys.executable, str(script), str(path)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    trials = trials_of(tmp_path / "storage")
    assert [trial.values["training.lr"] for trial in trials] == [1.5e-3, 1e-9, 1.5e-3]
    assert answer["slots"] == 1, "two at once would each hold what the other's workers wait for"
    assert [trial.status for trial in trials] == ["finished", "pruned", "finished"]
    assert trials[1].steps < trials[2].steps == 400
    assert (answer["held"], answer["free"]) == (0, 2.0), "nothing is left of the trial that was ended"
