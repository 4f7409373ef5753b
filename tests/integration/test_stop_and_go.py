"""A training on a real Ray that gets SIGTERM, in a worker and then in the driver, loses no step by it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.prepared import open_prepared
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import open_store
from pipeline.training.launch import LocalHooks
from pipeline.training.session import Session
from pipeline.training.worker import told
from tests.command_line import run_here

pytestmark = pytest.mark.ray

SMALL = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    "training.max_seconds=null",
    "training.batch_size=16",
    "training.report_every=10",
    "training.validate_every=100000",
    "training.threads_per_worker=1",
    "evaluation.nll_samples=2",
    "evaluation.samples=10",
    "registry.name=null",
]
STEPS = 4000


def until(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process.poll() is None, "the command ended before it should"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def saved_steps(storage: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in storage.glob("training/*/step-*/state.json"))


def undisturbed_weights(spec: RunSpec, key: str) -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        session = Session(spec, open_prepared(open_store(spec.storage), key))
        session.run(LocalHooks(spec))
        return session.stepper.scoring_weights()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def points(storage: Path, run_id: str, key: str) -> list[Any]:
    from mlflow import MlflowClient

    return list(MlflowClient(f"sqlite:///{storage}/mlflow.db").get_metric_history(run_id, key))


def train_workers() -> list[psutil.Process]:
    """Ray's processes of this machine, below this one, that train."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if one.is_running() and "RayTrainWorker" in " ".join(one.cmdline()[:1])]


def test_sigterm_of_a_worker_and_of_the_driver_lose_no_step(ray_cluster: None, tmp_path: Path) -> None:
    import ray
    from mlflow import MlflowClient

    # Only the checkpoints that are asked for: without one a training would begin again.
    overrides = [f"storage={tmp_path}", *SMALL, f"training.steps={STEPS}", "training.checkpoint_every=100000"]
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "jobs", "train", "conf/image_vae.yaml", *settings]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    said = tmp_path / "said"
    with said.open("w") as errors:
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    (folder,) = until(lambda: list(tmp_path.glob("training/*-1")), driver)
    until(lambda: told(folder.name).get("step", 0) >= 10, driver)

    (worker,) = train_workers()
    worker.send_signal(signal.SIGTERM)
    (first,) = until(lambda: saved_steps(tmp_path), driver)
    until(lambda: not worker.is_running(), driver)
    until(lambda: told(folder.name)["step"] > first + 10, driver)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=120)
    assert driver.returncode == 143
    last = saved_steps(tmp_path)[-1]
    assert 0 < first < first + 10 < last < STEPS
    assert re.search(rf"stopped {last:,}/{STEPS:,}  a checkpoint of step {last:,} is saved; the same", said.read_text())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "KILLED"

    code, answer, errors_said = run_here("train", "conf/image_vae.yaml", *settings)
    assert code == 0, errors_said
    assert answer["run_id"] == run.info.run_id
    losses = points(tmp_path, answer["run_id"], "train/loss")
    assert [point.step for point in losses] == list(range(10, STEPS + 1, 10))
    spec = load_spec("conf/image_vae.yaml", overrides)
    key = client.get_run(answer["run_id"]).data.tags["atelier.run_key"]
    weights = load_file(tmp_path / "runs" / key / "bundle" / "model.safetensors")
    for name, value in undisturbed_weights(spec, answer["prepared"]).items():
        assert torch.equal(weights[name], value), f"{name} differs"
