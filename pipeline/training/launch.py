"""Launching a training from the driver: as a Ray Train run, or in this process, and following its progress.  [ray]

The same name and storage resume by themselves: the workers find the run's checkpoints in its folder (`shelf`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

import pipeline.errors
from pipeline.data.prepared import Prepared
from pipeline.errors import CheckpointError, StorageError, TrainingFailedError
from pipeline.progress import WARNING, Progress
from pipeline.release.recorder import RunRecorder
from pipeline.spec import RunSpec
from pipeline.storage import Store, open_store
from pipeline.training.allocation import KEEP_FREED_MEMORY
from pipeline.training.checkpoint import Position, load_scoring_weights
from pipeline.training.health import HealthWarning, warnings_of
from pipeline.training.initial import read_weights
from pipeline.training.saving import Saver, flushing, refusal
from pipeline.training.session import Session
from pipeline.training.shelf import Shelf, shelf_of
from pipeline.training.steps import Stepper
from pipeline.training.termination import Termination
from pipeline.training.timing import parts_of
from pipeline.training.tracing import keep_trace
from pipeline.training.wishes import Wish

if TYPE_CHECKING:
    from ray.train import UserCallback

POLL_SECONDS = 0.5
STOPPED = 143
"""The exit code of a process that SIGTERM ended."""
START_SECONDS = "20"
"""How long an elastic run waits for the number of workers that it found room for, before it looks again."""
NOT_SHOWN = (
    "train/lr",
    "train/examples_per_second",
    "train/steps_per_second",
    "train/data_wait_share",
    "train/checkpoint_seconds",
    "train/micro_batch",
    "train/peak_memory_mib",
    "train/model_tflops_per_second",
    "train/mfu",
)
"""Of the metrics of a report, those that progress says in other words or not at all."""
TELLING_WAIT = 0.05
"""The share of the time spent waiting for data from which on progress says so."""


@dataclass
class Trained:
    """A training that reached its limit: where it ended, the weights for scores, and when its first step began."""

    step: int
    seconds: float
    weights: dict[str, Tensor]
    first_step_at: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Of the training's health, as `health.warnings_of` gives them."""


def train_with_ray(
    spec: RunSpec,
    prepared: Prepared,
    store: Store,
    run_key: str,
    tracking_uri: str | None,
    run_id: str | None,
    progress: Progress,
    callbacks: Sequence[UserCallback] = (),
    initial_weights: str | None = None,
) -> Trained:
    """Train on Ray Train workers, from the last checkpoint of `run_key` if there is one, else from `initial_weights`
    (a name that `initial.keep_weights` gave) if there are any.

    `callbacks` run in Train's controller: a trial's hand its reports to Tune. Raises: the AtelierError of a worker,
    or TrainingFailedError when workers failed oftener than `training.max_failures`; SystemExit when SIGTERM stopped
    it, with a checkpoint if it came within `training.stop_seconds`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    from pipeline.ray_session import gpus, is_own
    from pipeline.training.asked import CatchSigterm, ends_when_stopped
    from pipeline.training.lean_trainer import LeanTorchTrainer
    from pipeline.training.worker import WorkerConfig, train_worker

    training = spec.training
    use_gpu = gpus() >= training.fewest_workers if training.use_gpu == "auto" else training.use_gpu
    if training.fewest_workers < training.most_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    config = WorkerConfig(
        spec.as_dict(), store.uri, prepared.key, run_key, tracking_uri, run_id, initial_weights, bool(callbacks)
    )
    shelf = shelf_of(store, run_key, training)
    # Of a run that was begun when Ray still kept the checkpoints: it will not start when one of them is gone.
    shelf.store.delete_file("checkpoint_manager_snapshot.json")
    trainer = LeanTorchTrainer(
        train_worker,
        own_ray=is_own(),
        train_loop_config=config.as_dict(),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            elastic_resize_monitor_interval_s=training.resize_seconds,
            use_gpu=use_gpu,
            placement_strategy=training.placement.upper(),
            resources_per_worker={"CPU": training.threads_per_worker or 1, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=run_key,
            storage_path=store.path("training"),
            storage_filesystem=None if store.is_local else store.filesystem,
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[*callbacks, CatchSigterm()],
            # On a GPU the memory of steps is not the process's.
            worker_runtime_env=None if use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        ),
    )
    with (
        _Follower(run_key, training.steps, training.max_seconds, progress) as follower,
        ends_when_stopped(run_key, training.stop_seconds, lambda: follower.first_step_at is not None) as termination,
    ):
        try:
            result = trainer.fit()
            stopped = termination.asked.is_set()
        except RayTrainingFailedError as error:
            raise _cause_of(error) from error
    value: dict[str, Any] = result.return_value or {}
    if "failure" in value:
        raise getattr(pipeline.errors, value["failure"])(value["message"])
    if "step" not in value:
        raise TrainingFailedError(f"{run_key}: training ended without telling where; see {result.path}")
    if stopped:
        _leave(progress, value["step"], training.steps)
    weights, metrics, warnings = _final_weights(shelf, value["step"]), value["metrics"], value["warnings"]
    return Trained(value["step"], value["seconds"], weights, follower.first_step_at, metrics, warnings)


def _final_weights(shelf: Shelf, step: int) -> dict[str, Tensor]:
    """Those for scores, of the checkpoint with which a training ended. An older one would be of a shorter training.

    Raises: CheckpointError when it was damaged since.
    """
    try:
        with shelf.opened(step) as folder:
            assert folder is not None
            return load_scoring_weights(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; training ended with it, so run the same command: it goes on from the checkpoint before, and "
            "writes this one again"
        ) from error


def _leave(progress: Progress, step: int, steps: int) -> NoReturn:
    """End as SIGTERM asked. Raises: SystemExit."""
    progress("stopped", step, steps, f"a checkpoint of step {step:,} is saved; the same command goes on from it")
    raise SystemExit(STOPPED)


def _cause_of(error: Exception) -> Exception:
    """The AtelierError that a worker raised, or a summary of what Ray says."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in failures.items():
        cause = getattr(failure, "base_exc", failure)
        seen = cause
        while seen is not None:
            if isinstance(seen, pipeline.errors.AtelierError):
                return type(seen)(f"worker {rank}: {seen}")
            seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return TrainingFailedError(f"training failed after its restarts: {lines[-1] if lines else type(error).__name__}")


class _Follower:
    """A thread that shows what rank 0 tells while `fit` blocks."""

    def __init__(self, run_key: str, steps: int, max_seconds: float | None, progress: Progress) -> None:
        self.run_key, self.steps, self.max_seconds, self.progress = run_key, steps, max_seconds, progress
        self.first_step_at: float | None = None
        self.num_said = 0
        self.started = time.time()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="atelier-progress", daemon=True)

    def __enter__(self) -> _Follower:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _follow(self) -> None:
        from pipeline.training.worker import told

        while True:
            ending = self.stop.wait(POLL_SECONDS)
            values = told(self.run_key)
            if values and values["first_step_at"] and values["first_step_at"] >= self.started - 1:
                self.first_step_at = self.first_step_at or values["first_step_at"]
                for message in values.get("warnings", [])[self.num_said :]:
                    self.progress(WARNING, 0, None, message)
                    self.num_said += 1
                steps = values["steps"]  # of which a limit by epochs may allow fewer than the spec
                self.progress("train", values["step"], steps, describe(values, steps, self.max_seconds))
            else:
                waited = time.time() - self.started
                self.progress("train", 0, self.steps, f"waiting for Ray Train's workers, {waited:.0f} s")
            if ending:
                return


def describe(values: dict[str, Any], steps: int, max_seconds: float | None) -> str:
    """One line of progress: speed, losses, time left, how long training waits for data when that is long, and how many
    examples go through the network at once where that was found."""
    metrics: dict[str, float] = values["metrics"]
    parts: list[str] = []
    if "train/examples_per_second" in metrics:
        parts.append(f"{metrics['train/examples_per_second']:,.0f} examples/s")
    shown = [(k, v) for k, v in metrics.items() if k.startswith("train/") and k not in NOT_SHOWN]
    parts += [f"{key.removeprefix('train/')} {value:.4g}" for key, value in shown[:3]]
    if metrics.get("train/data_wait_share", 0.0) >= TELLING_WAIT:
        parts.append(f"{metrics['train/data_wait_share']:.0%} of the time waiting for data")
    if "train/micro_batch" in metrics:
        parts.append(f"{metrics['train/micro_batch']:,.0f} at once")
    parts += largest_part(metrics)
    rate = metrics.get("train/steps_per_second", 0.0)
    if rate > 0:
        left = (steps - values["step"]) / rate
        if max_seconds is not None:
            left = min(left, max_seconds - values["seconds"])
        parts.append(f"{max(0.0, left):.0f} s left")
    return ", ".join(parts)


def largest_part(metrics: Mapping[str, float]) -> list[str]:
    """The largest part of the time since the last report, where it is neither the networks' nor waiting for data."""
    spent = parts_of(metrics)
    largest = max(spent, key=lambda part: spent[part], default="")
    if largest in ("", "data", "forward", "backward") or spent[largest] == 0:
        return []
    return [f"most of the time goes to {largest} ({spent[largest] / sum(spent.values()):.0%})"]


class LocalHooks:
    """Reports, warnings and checkpoints of a training in this process: MLflow where given, files, callbacks.

    With `beside`, checkpoints are written by a thread, as workers of Ray Train do, and `close` waits for the last.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: Path | None = None,
        recorder: RunRecorder | None = None,
        on_report: Callable[[Position, dict[str, float]], None] | None = None,
        on_warning: Callable[[HealthWarning], None] | None = None,
        shelf: Shelf | None = None,
        beside: bool = False,
        termination: Termination | None = None,
        on_trace: Callable[[Path], None] | None = None,
    ) -> None:
        self.spec, self.folder, self.recorder, self.termination = spec, folder, recorder, termination
        self.saver: Saver | None = None
        if shelf is None and folder is not None:
            shelf = Shelf(open_store(str(folder)), spec.training.keep_checkpoints)
        if shelf is not None:
            self.saver = Saver(shelf, spec, flushing(recorder), beside)
        self.on_report, self.on_warning, self.on_trace = on_report, on_warning, on_trace
        self.warnings: list[HealthWarning] = []
        self.metrics: dict[str, float] = {}

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        if self.saver is not None:
            self.saver.check()
        self.metrics |= metrics
        if self.recorder is not None:
            self.recorder.log_metrics({**metrics, "train/seconds": at.seconds}, at.step)
        if self.on_report is not None:
            self.on_report(at, metrics)

    def warn(self, at: Position, warning: HealthWarning) -> None:
        self.warnings.append(warning)
        if self.on_warning is not None:
            self.on_warning(warning)

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        if self.saver is not None:
            self.saver.save(stepper, at)

    def close(self) -> None:
        """Wait for the last checkpoint. Raises: StorageError."""
        if self.saver is not None:
            self.saver.wait()

    def trace(self, folder: Path) -> None:
        if self.on_trace is not None:
            self.on_trace(folder)

    def hear(self) -> Wish:
        return Wish.END if self.termination is not None and self.termination.asked.is_set() else Wish.NONE

    def obeyed(self, wish: Wish, at: Position) -> None:
        """Nothing is left to do: END ends the loop."""


def local_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that `LocalHooks` wrote into `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def train_in_process(
    spec: RunSpec,
    prepared: Prepared,
    store: Store,
    run_key: str,
    tracking_uri: str | None,
    run_id: str | None,
    progress: Progress,
    initial_weights: str | None = None,
) -> Trained:
    """Train in this process, without Ray Train (`training.num_workers: 0`).

    Raises: NonFiniteLossError; CheckpointError when there are checkpoints and none can be trusted; StorageError;
    SystemExit when SIGTERM stopped it, with a checkpoint.
    """
    shelf = shelf_of(store, run_key, spec.training)
    found = shelf.find()
    shelf.clear()
    device = "cuda" if spec.training.use_gpu and torch.cuda.is_available() else "cpu"
    if spec.training.threads_per_worker:
        torch.set_num_threads(spec.training.threads_per_worker)
    with shelf.opened(found.step) as resume_from:
        initial = read_weights(store, initial_weights) if initial_weights and resume_from is None else None
        session = Session(spec, prepared, device, resume_from=resume_from, initial_weights=initial)
    recorder = RunRecorder(tracking_uri, run_id, system_metrics=True) if tracking_uri and run_id else None

    def show(at: Position, metrics: dict[str, float]) -> None:
        values = {"step": at.step, "seconds": at.seconds, "metrics": metrics}
        steps = session.training.steps
        progress("train", at.step, steps, describe(values, steps, spec.training.max_seconds))

    def say(warning: HealthWarning) -> None:
        progress(WARNING, 0, None, warning.in_words())

    def keep(traced: Path) -> None:
        keep_trace(traced, store, run_key, recorder)

    termination = Termination()
    hooks = LocalHooks(spec, None, recorder, show, say, shelf, beside=True, termination=termination, on_trace=keep)
    first_step_at = time.time()
    torch.set_flush_denormal(True)  # as in the workers of Ray Train
    try:
        if (warning := refusal(found, session.stepper.course)) is not None:
            hooks.warn(session.start, warning)
        with termination:
            end = session.run(hooks)
            hooks.close()
    finally:
        torch.set_flush_denormal(False)
        with contextlib.suppress(StorageError):  # what ended the training is raised, not what came after it
            hooks.close()
        if recorder is not None:
            recorder.close()
    if termination.asked.is_set():
        _leave(progress, end.step, spec.training.steps)
    stepper = session.stepper
    warnings = warnings_of(stepper.course)
    return Trained(end.step, end.seconds, stepper.bundled_weights(), first_step_at, hooks.metrics, warnings)
