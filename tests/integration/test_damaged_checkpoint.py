"""A run whose newest checkpoint was damaged goes on from the one before it, on a real Ray and a real MLflow."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from pipeline.spec import load_spec
from tests.command_line import run_here, settings
from tests.integration.broken_off import assert_undisturbed, recorded_steps, start_training, until

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


def test_a_run_with_a_damaged_newest_checkpoint_ends_as_one_that_was_left_alone(
    ray_cluster: None, storage_with_mlflow: Path
) -> None:
    from mlflow import MlflowClient

    storage, overrides = storage_with_mlflow, [f"storage={storage_with_mlflow}", *SMALL]
    driver = start_training("conf/image_vae.yaml", overrides)
    until(lambda: len(list(storage.glob("training/*/step-*"))) > 1, driver, 300)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(5)  # the workers of a dead driver end within two seconds
    newest = max(storage.glob("training/*/step-*"))
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "weights.safetensors").write_bytes(data)

    code, resumed, said = run_here("train", "conf/image_vae.yaml", *settings(*overrides))
    assert code == 0, said
    assert said.count("Checkpoint refused (checkpoint_refused)") == 1
    assert f"{newest.name}/weights.safetensors: its sha256 is not the one" in said
    tags = MlflowClient(f"sqlite:///{storage}/mlflow.db").get_run(resumed["run_id"]).data.tags
    assert tags["atelier.run_key"].endswith("-1"), "the run was continued, not begun anew"
    assert "checkpoint_refused" in tags["atelier.warnings"]
    assert recorded_steps(storage, resumed["run_id"], "train/checkpoint_seconds") == list(range(10, STEPS + 1, 10))
    assert not list(storage.glob("training/*/.step-*"))
    assert_undisturbed(load_spec("conf/image_vae.yaml", overrides), resumed)
