"""What runs in a Ray Train worker: a session with hooks that report to Ray, MLflow and the driver.  [ray]

Every rank runs `train_worker`. Rank 0 records in MLflow, tells the driver its progress and writes checkpoints;
all ranks report to Ray equally often, because `ray.train.report` is a collective.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray.train
import ray.train.collective
import torch
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.train.torch import get_device
from ray.util.placement_group import get_current_placement_group

from pipeline.data.prepared import open_prepared
from pipeline.errors import AtelierError, CheckpointError, NonFiniteLossError, StorageError, TrackingError
from pipeline.release.recorder import RunRecorder
from pipeline.spec import make_spec
from pipeline.storage import Store, open_store
from pipeline.training.asked import Asked
from pipeline.training.checkpoint import Position, unsent_points
from pipeline.training.health import HealthWarning, warnings_of
from pipeline.training.initial import read_weights
from pipeline.training.processors import processors
from pipeline.training.saving import Saver, refusal
from pipeline.training.session import Session
from pipeline.training.shelf import Found, Shelf, shelf_of
from pipeline.training.steps import Stepper
from pipeline.training.tracing import keep_trace
from pipeline.training.wishes import Wish

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
    listened: bool = False
    """Whether a callback of the driver's wants a report of every checkpoint, as Tune does."""

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
    """Reports of one rank: to MLflow, the driver and, as checkpoints, the shelf (rank 0); and to Ray where somebody
    listens (all ranks, since that is a collective).

    As a context they end with it: they wait for the last checkpoint, whatever comes of it, and send MLflow the rest.
    Raises: TrackingError where that fails, and the block did not.
    """

    def __init__(
        self, session: Session, config: WorkerConfig, shelf: Shelf, unsent: Sequence[Sequence[Any]] = ()
    ) -> None:
        self.session, self.config = session, config
        self.recorder: RunRecorder | None = None
        if session.rank == 0 and config.tracking_uri and config.run_id:
            self.recorder = RunRecorder(config.tracking_uri, config.run_id, system_metrics=True)
            self.recorder.begin_with(unsent)
            # Started now, the recorder's thread imports MLflow while the first steps are taken.
            self.recorder.start()
        self.saver = Saver(shelf, session.spec, self.recorder)
        self.first_step_at: float | None = None
        self.metrics: dict[str, float] = {}
        self.warnings: list[str] = []
        self.asked = Asked(config.run_key, session.rank)
        self.hear = self.asked.hear

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        self.metrics |= metrics
        if self.session.rank != 0:
            return
        self.saver.check()
        if self.recorder is not None:
            more = {"train/seconds": at.seconds, "train/num_workers": self.session.world_size}
            self.recorder.log_metrics({**metrics, **more}, at.step)
        self.tell("training", at)

    def warn(self, at: Position, warning: HealthWarning) -> None:
        self.warnings.append(warning.in_words())
        if self.session.rank == 0:
            self.tell("training", at)

    def tell(self, stage: str, at: Position) -> None:
        values = {"stage": stage, "step": at.step, "seconds": at.seconds, "metrics": self.metrics}
        values |= {"warnings": self.warnings, "steps": self.session.training.steps}
        group = get_current_placement_group()
        place = None if group is None else group.id.hex()
        tell(self.config.run_key, {**values, "first_step_at": self.first_step_at, "placement_group": place})

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        self.saver.save(stepper, at)
        if self.config.listened:
            ray.train.report({**self.metrics, "step": at.step})

    def trace(self, folder: Path) -> None:
        keep_trace(folder, open_store(self.config.storage), self.config.run_key, self.recorder)

    def obeyed(self, wish: Wish, at: Position) -> None:
        self.saver.wait()
        self.asked.obeyed(wish, at)

    def __enter__(self) -> WorkerHooks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.asked.close()
        with contextlib.suppress(StorageError):
            self.saver.wait()
        if self.recorder is not None:
            self.recorder.__exit__(kind, error, at)


def find_checkpoint(shelf: Shelf, rank: int, world_size: int) -> Found:
    """What this start goes on from: rank 0 looks, verifies and clears away, and all ranks go by what it found.

    Raises: CheckpointError, StorageError, on every rank alike.
    """
    answer: tuple[Found, AtelierError | None] = Found(), None
    if rank == 0:
        try:
            answer = shelf.find(), None
            shelf.clear()
        except (CheckpointError, StorageError) as error:
            answer = Found(), error
    if world_size > 1:
        answer = ray.train.collective.broadcast_from_rank_zero(answer)
    found, failure = answer
    if failure is not None:
        raise failure
    return found


def train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """Train; return where it ended, or the failure that trying again would not mend.

    A failure is returned when there is one worker, so that Ray does not restart what must fail again; with
    several it is raised, because the others wait in a collective, but for a loss that is not finite: all fail of it.
    An MLflow or an object store that does not answer is raised: when Ray starts the worker again, it may.
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
    store = open_store(config.storage)
    shelf = shelf_of(store, config.run_key, spec.training)
    try:
        found = find_checkpoint(shelf, rank, world_size)
    except AtelierError as error:
        if _may_pass(error, store):
            raise
        return _failure(error, None)
    try:
        prepared = open_prepared(store, config.prepared_key)
        with shelf.opened(found.step) as resume_from:
            initial = None
            if config.initial_weights is not None and resume_from is None:
                initial = read_weights(store, config.initial_weights)
            session = Session(spec, prepared, get_device(), rank, world_size, resume_from, initial)
            unsent = unsent_points(resume_from)
        started = session.start
        with WorkerHooks(session, config, shelf, unsent) as hooks:
            hooks.first_step_at = time.time()
            if rank == 0:
                hooks.tell("training", started)
            if (warning := refusal(found, session.stepper.course)) is not None:
                hooks.warn(started, warning)
            end = session.run(hooks)
            hooks.saver.wait()
        return {
            "step": end.step,
            "steps": session.training.steps,
            "seconds": end.seconds,
            "started_at_step": started.step,
            "metrics": hooks.metrics,
            "warnings": warnings_of(session.stepper.course),
        }
    except AtelierError as error:
        if _may_pass(error, store) or (world_size > 1 and not isinstance(error, NonFiniteLossError)):
            raise
        return _failure(error, hooks)


def _may_pass(error: AtelierError, store: Store) -> bool:
    return isinstance(error, TrackingError) or (isinstance(error, StorageError) and not store.is_local)


def _failure(error: AtelierError, hooks: WorkerHooks | None) -> dict[str, Any]:
    last = "none" if hooks is None or hooks.saver.last is None else f"step {hooks.saver.last}"
    return {"failure": type(error).__name__, "message": f"{error}; last checkpoint in this start: {last}"}
