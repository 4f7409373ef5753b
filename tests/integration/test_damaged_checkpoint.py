"""A run whose newest checkpoint was damaged goes on from the one before it, on a real Ray and a real MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.prepared import open_prepared
from pipeline.spec import RunSpec, load_spec
from pipeline.storage import open_store
from pipeline.training.launch import LocalHooks
from pipeline.training.session import Session
from tests.command_line import run_here

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 3000
SMALL = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    f"training.steps={STEPS}",
    "training.max_seconds=null",
    "training.batch_size=16",
    "training.report_every=10",
    "training.checkpoint_every=200",
    "training.validate_every=500",
    "training.threads_per_worker=1",
    "evaluation.nll_samples=2",
    "evaluation.samples=20",
    "registry.name=null",
]


def undisturbed_weights(spec: RunSpec, prepared: str) -> dict[str, torch.Tensor]:
    """Those for scores of the same training in this process, with one thread as its worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        session = Session(spec, open_prepared(open_store(spec.storage), prepared))
        session.run(LocalHooks(spec))
        return session.stepper.scoring_weights()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def test_a_run_with_a_damaged_newest_checkpoint_ends_as_one_that_was_left_alone(
    ray_cluster: None, storage_with_mlflow: Path
) -> None:
    import ray
    from mlflow import MlflowClient

    storage, overrides = storage_with_mlflow, [f"storage={storage_with_mlflow}", *SMALL]
    command = ["train", "conf/image_vae.yaml", *(part for one in overrides for part in ("--set", one))]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(list(storage.glob("training/*/step-*"))) < 2 and time.monotonic() < deadline:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(5)  # the workers of a dead driver end within two seconds
    newest = max(storage.glob("training/*/step-*"))
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "weights.safetensors").write_bytes(data)

    code, resumed, said = run_here(*command)
    assert code == 0, said
    assert said.count("Checkpoint refused (checkpoint_refused)") == 1
    assert f"{newest.name}/weights.safetensors: its sha256 is not the one" in said
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    tags = client.get_run(resumed["run_id"]).data.tags
    key = tags["atelier.run_key"]
    assert key.endswith("-1"), "the run was continued, not begun anew"
    assert "checkpoint_refused" in tags["atelier.warnings"]
    for name in ("train/loss", "train/checkpoint_seconds"):
        steps = [point.step for point in client.get_metric_history(resumed["run_id"], name)]
        assert steps == list(range(10, STEPS + 1, 10)), name
    assert not list(storage.glob("training/*/.step-*"))

    weights = load_file(storage / "runs" / key / "bundle" / "model.safetensors")
    spec = load_spec("conf/image_vae.yaml", overrides)
    for name, value in undisturbed_weights(spec, resumed["prepared"]).items():
        assert torch.equal(weights[name], value), f"{name} differs"
