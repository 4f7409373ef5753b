"""A training on a range of workers grows and shrinks with its cluster, and one whose node is taken away goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import load_spec
from pipeline.training.in_process import LocalHooks
from pipeline.training.session import Session
from tests.command_line import settings
from tests.conftest import prepared_in_memory
from tests.integration.broken_off import assert_undisturbed, saved_steps, until
from tests.integration.ray_nodes import RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    "training.max_seconds=null",
    # Two workers' gradients equal one's but for rounding, which thousands of steps in bfloat16 would make large.
    "training.precision=float32",
    "training.batch_size=16",
    "training.report_every=10",
    "training.validate_every=1000000",
    # Only the checkpoints that are asked for: work that was lost would show.
    "training.checkpoint_every=1000000",
    "training.threads_per_worker=2",
    "training.resize_seconds=1",
    "evaluation.nll_samples=2",
    "evaluation.samples=10",
    "registry.name=null",
]


def steps_for(seconds: float) -> int:
    """Steps that one worker takes about so long for, here and now: nodes come and go while it trains."""
    spec = load_spec(REPOSITORY / "conf/image_vae.yaml", [*SMALL, "training.steps=100"])
    session = Session(spec, prepared_in_memory(spec))
    start = time.monotonic()
    session.run(LocalHooks(spec))
    return max(200, int(seconds * 100 / (time.monotonic() - start) / 10) * 10)


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A head, and one node with room for one worker."""
    with RayNodes(workers=1) as nodes:
        yield nodes


class Run:
    """`atelier train` on the cluster's head, and what can be seen of it."""

    def __init__(self, nodes: RayNodes, storage: Path, *overrides: str) -> None:
        self.storage, self.overrides = storage, [f"storage={storage}", *SMALL, *overrides]
        self.said = storage / "said"
        self.began = time.monotonic()
        quick = {"RAY_ADDRESS": f"127.0.0.2:{nodes.gcs_port}", "RAY_TMPDIR": str(nodes.logs())}
        with self.said.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs", "train", "conf/image_vae.yaml", *settings(*self.overrides)],
                cwd=REPOSITORY,
                env=nodes.environment(MLFLOW_DISABLE_TELEMETRY="true", **quick),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def until(self, true: Callable[[], Any], what: str) -> Any:
        found = until(true, self.process, 300)
        print(f"{time.monotonic() - self.began:6.1f} s  {what}: {found}", flush=True)
        return found

    def workers(self) -> int:
        """How many workers the last recorded step had; read beside MLflow, which would make the store that it opens."""
        with contextlib.suppress(sqlite3.OperationalError):
            store = sqlite3.connect(f"file:{self.storage}/mlflow.db?mode=ro", uri=True)
            with contextlib.closing(store):
                found = store.execute("SELECT value FROM latest_metrics WHERE key = 'train/num_workers'").fetchall()
            return int(found[0][0]) if found else 0
        return 0

    def ends_well(self) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, self.said.read_text()
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        return answer

    def assert_undisturbed(self, answer: dict[str, Any], within: float = 0.0) -> None:
        assert_undisturbed(load_spec(REPOSITORY / "conf/image_vae.yaml", self.overrides), answer, within)


def test_a_training_grows_when_a_node_comes_and_shrinks_when_it_goes(nodes: RayNodes, tmp_path: Path) -> None:
    steps = steps_for(40)
    run = Run(nodes, tmp_path, "training.num_workers=[1,2]", f"training.steps={steps}", "training.optimizer=sgd")
    run.until(lambda: run.workers() == 1, "trains on one")
    second = nodes.add(2)
    run.until(lambda: second, "a node came")
    run.until(lambda: saved_steps(tmp_path), "a checkpoint before it grows")
    run.until(lambda: run.workers() == 2, "trains on two")
    nodes.lose(second)
    run.until(lambda: run.workers() == 1, "the node went; trains on one")
    run.process.send_signal(signal.SIGTERM)
    run.process.communicate(timeout=120)
    assert run.process.returncode == 143
    stopped = saved_steps(tmp_path)[-1]
    again = Run(nodes, tmp_path, *run.overrides[1 + len(SMALL) :])
    again.assert_undisturbed(again.ends_well(), within=1e-5)
    assert 0 < stopped < steps


def test_a_training_whose_node_is_taken_away_saves_before_it_and_goes_on(nodes: RayNodes, tmp_path: Path) -> None:
    steps = steps_for(40)
    # One thread, as in the training that it is compared with.
    run = Run(nodes, tmp_path, "training.num_workers=1", "training.threads_per_worker=1", f"training.steps={steps}")
    run.until(lambda: run.workers() == 1, "trains")
    other = nodes.add(2)
    (place,) = nodes.workers_named("RayTrainWorker")
    assert place != other
    nodes.announce_loss(place, 20)
    told_at = time.monotonic()
    (at_notice,) = run.until(lambda: saved_steps(tmp_path), "saved at the notice")
    print(f"{time.monotonic() - told_at:.1f} s from the notice to the checkpoint")
    (_, before_loss) = run.until(
        lambda: len(saved_steps(tmp_path)) > 1 and saved_steps(tmp_path), "saved before the loss"
    )
    assert time.monotonic() - told_at < 20
    time.sleep(max(0.0, 20 - (time.monotonic() - told_at)))
    nodes.lose(place)
    run.until(lambda: other in nodes.workers_named("RayTrainWorker"), "a worker on the other node")
    answer = run.ends_well()
    assert 0 < at_notice < before_loss < steps
    run.assert_undisturbed(answer)
