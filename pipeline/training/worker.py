"""What runs in a Ray Train worker: a session with hooks that report to Ray, MLflow and the driver.  [ray]

Every rank runs `train_worker`. Rank 0 records in MLflow, tells the driver its progress and writes checkpoints;
all ranks report to Ray equally often, because `ray.train.report` is a collective.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.train.torch import get_device
from ray.util.placement_group import get_current_placement_group

from pipeline.data.prepared import open_prepared
from pipeline.errors import AtelierError, StorageError, TrackingError
from pipeline.release.recorder import RunRecorder
from pipeline.spec import make_spec
from pipeline.storage import open_store
from pipeline.training.checkpoint import Position, save_checkpoint
from pipeline.training.health import HealthWarning, warnings_of
from pipeline.training.initial import read_weights
from pipeline.training.processors import processors
from pipeline.training.session import Session
from pipeline.training.steps import Stepper

KV_NAMESPACE = b"atelier"


@dataclass(frozen=True)
class WorkerConfig:
    """What crosses from the driver into the workers, as plain values."""

    spec: dict[str, Any]
    storage: str
    prepared_key: str
    run_key: str
    tracking_uri: str | None
    run_id: str | None
    initial_weights: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def tell(run_key: str, values: dict[str, Any]) -> None:
    """Put what the driver shows into the cluster's key-value store: no actor, no file, any node."""
    _internal_kv_put(run_key.encode(), json.dumps(values).encode(), overwrite=True, namespace=KV_NAMESPACE)


def told(run_key: str) -> dict[str, Any]:
    """What the worker told last, or nothing."""
    data = _internal_kv_get(run_key.encode(), namespace=KV_NAMESPACE)
    return json.loads(data) if data else {}


def set_threads(threads: int | None, local_workers: int) -> int:
    """Share the node's processors among its workers: Ray would leave every worker with one thread."""
    chosen = threads or max(1, processors() // max(1, local_workers))
    torch.set_num_threads(chosen)
    return chosen


class WorkerHooks:
    """Reports of one rank: to MLflow and the driver (rank 0), checkpoints through Ray (all ranks)."""

    def __init__(self, session: Session, config: WorkerConfig) -> None:
        self.session, self.config = session, config
        self.recorder: RunRecorder | None = None
        if session.rank == 0 and config.tracking_uri and config.run_id:
            self.recorder = RunRecorder(config.tracking_uri, config.run_id, system_metrics=True)
            # Started now, the recorder's thread imports MLflow while the first steps are taken.
            self.recorder.start()
        self.first_step_at: float | None = None
        self.last_checkpoint = "none yet"
        self.metrics: dict[str, float] = {}
        self.warnings: list[str] = []

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        self.metrics |= metrics
        if self.session.rank != 0:
            return
        if self.recorder is not None:
            self.recorder.log_metrics({**metrics, "train/seconds": at.seconds}, at.step)
        self.tell("training", at)

    def warn(self, at: Position, warning: HealthWarning) -> None:
        self.warnings.append(warning.in_words())
        if self.session.rank == 0:
            self.tell("training", at)

    def tell(self, stage: str, at: Position) -> None:
        values = {"stage": stage, "step": at.step, "seconds": at.seconds, "metrics": self.metrics}
        values["warnings"] = self.warnings
        group = get_current_placement_group()
        place = None if group is None else group.id.hex()
        tell(self.config.run_key, {**values, "first_step_at": self.first_step_at, "placement_group": place})

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        carry = stepper.global_carry()
        metrics = {**self.metrics, "step": at.step}
        if self.session.rank != 0:
            ray.train.report(metrics)
            return
        if self.recorder is not None:
            # A resumed run reports from the checkpoint on, so what came before it must not be lost with this process.
            with contextlib.suppress(TrackingError):
                self.recorder.flush()
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), stepper, carry, at, self.session.spec)
            name = f"step-{at.step:08d}"
            try:
                ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
            except OSError as error:
                raise StorageError(
                    f"{self.config.storage}: the checkpoint of step {at.step} cannot be stored: {error}; free some "
                    "space and run the same command: it continues at the checkpoint before"
                ) from error
        self.last_checkpoint = f"step {at.step}"

    def close(self) -> None:
        if self.recorder is not None:
            self.recorder.close()


def train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """Train; return where it ended, or the failure that trying again would not mend.

    A failure is returned when there is one worker, so that Ray does not restart what must fail again; with
    several it is raised, because the others wait in a collective.
    """
    config = WorkerConfig(**values)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    spec = make_spec(config.spec)
    set_threads(spec.training.threads_per_worker, context.get_local_world_size())
    # Rare pixels leave averages in Adam that decay to denormal numbers, which processors add many times slower:
    # an autoencoder on MNIST lost an eighth of its speed in a minute. Set in the thread that trains, before it has
    # helpers.
    torch.set_flush_denormal(True)
    hooks: WorkerHooks | None = None
    try:
        prepared = open_prepared(open_store(config.storage), config.prepared_key)
        with _latest_checkpoint() as resume_from:
            initial = None
            if config.initial_weights is not None and resume_from is None:
                initial = read_weights(open_store(config.storage), config.initial_weights)
            session = Session(spec, prepared, get_device(), rank, world_size, resume_from, initial)
        hooks = WorkerHooks(session, config)
        started = session.start
        hooks.first_step_at = time.time()
        if rank == 0:
            hooks.tell("training", started)
        end = session.run(hooks)
        return {
            "step": end.step,
            "seconds": end.seconds,
            "started_at_step": started.step,
            "metrics": hooks.metrics,
            "warnings": warnings_of(session.stepper.course),
        }
    except AtelierError as error:
        if world_size > 1:
            raise
        last = hooks.last_checkpoint if hooks else "none"
        return {"failure": type(error).__name__, "message": f"{error}; last checkpoint in this start: {last}"}
    finally:
        if hooks is not None:
            hooks.close()


@contextlib.contextmanager
def _latest_checkpoint() -> Any:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)
