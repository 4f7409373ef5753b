"""Trainings that tests break off: started on a real Ray, watched from outside, and held against undisturbed ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.data.prepared import open_prepared
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.command_line import settings


def start_training(conf: str, overrides: list[str], said: Path | None = None) -> subprocess.Popen[str]:
    """`atelier train` as a process that joins this one's Ray; what it says goes to `said`, and it answers."""
    import ray

    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "jobs", "train", conf, *settings(*overrides)]
    with Path(said or os.devnull).open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 180) -> Any:
    """What `true` gives once it gives something, while the process goes on."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert process is None or process.poll() is None, "the command ended before it should"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def saved_steps(storage: Path) -> list[int]:
    """The steps of the checkpoints that are whole."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in storage.glob("training/*/step-*/state.json"))


def recorded_steps(storage: Path, run_id: str, metric: str = "train/loss") -> list[int]:
    """The steps that MLflow has of a metric, as often as it has them."""
    from mlflow import MlflowClient

    points = MlflowClient(f"sqlite:///{storage}/mlflow.db").get_metric_history(run_id, metric)
    return [point.step for point in points]


def run_key(storage: Path, run_id: str) -> str:
    """The name of a run's folder."""
    from mlflow import MlflowClient

    return str(MlflowClient(f"sqlite:///{storage}/mlflow.db").get_run(run_id).data.tags["atelier.run_key"])


def undisturbed_weights(spec: RunSpec, prepared: str) -> dict[str, torch.Tensor]:
    """Those for scores of the same training in this process, with one thread as its worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        session = Session(spec, open_prepared(open_store(spec.storage), prepared))
        session.run(LocalHooks(spec))
        return session.stepper.state.scoring_weights()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def assert_undisturbed(spec: RunSpec, answer: dict[str, Any], within: float = 0.0) -> None:
    """A run that reports every ten steps recorded each once, and ended with the weights of one that was left alone."""
    storage, training = Path(spec.storage), spec.training
    steps = recorded_steps(storage, answer["run_id"])
    assert steps == list(range(10, training.steps + 1, 10)), "every step once"
    bundle = storage / "runs" / run_key(storage, answer["run_id"]) / "bundle"
    weights = load_file(bundle / "model.safetensors")
    for name, value in undisturbed_weights(spec, answer["prepared"]).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}")
