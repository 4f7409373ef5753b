"""A training on a real Ray whose worker or driver is ended goes on: SIGTERM loses no step, SIGKILL no run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

import psutil
import pytest

from pipeline.spec import load_spec
from pipeline.training.worker import told
from tests.command_line import run_here, settings
from tests.integration.broken_off import assert_undisturbed, saved_steps, start_training, until

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


def train_workers() -> list[psutil.Process]:
    """Ray's processes of this machine, below this one, that train."""
    below = psutil.Process().children(recursive=True)
    found = []
    for one in below:
        with contextlib.suppress(psutil.Error):  # it may end, or have ended and not be waited for yet
            found += [one] if "RayTrainWorker" in " ".join(one.cmdline()[:1]) else []
    return found


def test_sigterm_of_a_worker_and_of_the_driver_lose_no_step(ray_cluster: None, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    # Only the checkpoints that are asked for: without one a training would begin again.
    overrides = [f"storage={tmp_path}", *SMALL, f"training.steps={STEPS}", "training.checkpoint_every=100000"]
    said = tmp_path / "said"
    driver = start_training("conf/image_vae.yaml", overrides, said)
    (folder,) = until(lambda: list(tmp_path.glob("training/*-1")), driver)
    until(lambda: told(folder.name).get("step", 0) >= 10, driver)

    (worker,) = train_workers()
    worker.send_signal(signal.SIGTERM)
    (first,) = until(lambda: saved_steps(tmp_path), driver)
    until(lambda: not worker.is_running(), driver)
    until(lambda: told(folder.name)["step"] > first + 10, driver)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 143
    last = saved_steps(tmp_path)[-1]
    assert 0 < first < first + 10 < last < STEPS
    assert re.search(rf"stopped {last:,}/{STEPS:,}  a checkpoint of step {last:,} is saved; the same", said.read_text())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "KILLED"

    code, answer, errors_said = run_here("train", "conf/image_vae.yaml", *settings(*overrides))
    assert code == 0, errors_said
    assert answer["run_id"] == run.info.run_id
    assert_undisturbed(load_spec("conf/image_vae.yaml", overrides), answer)


@pytest.mark.slow  # of the quick tests, `tests/chaos` kills a worker as well, and `test_failures` counts
def test_workers_that_are_killed_after_new_checkpoints_end_no_training_that_may_fail_once(
    ray_cluster: None, tmp_path: Path
) -> None:
    often = ("training.steps=2000", "training.checkpoint_every=100", "training.max_failures=1")
    overrides = [f"storage={tmp_path}", *SMALL, *often]
    said = tmp_path / "said"
    driver = start_training("conf/image_vae.yaml", overrides, said)
    last: list[int] = []
    for _ in range(3):
        until(lambda before=last: saved_steps(tmp_path)[-1:] > before and train_workers(), driver)
        last = saved_steps(tmp_path)[-1:]
        (worker,) = train_workers()
        worker.kill()
        worker.wait()
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said.read_text()
    assert_undisturbed(load_spec("conf/image_vae.yaml", overrides), json.loads(output.splitlines()[-1]))
