"""Training in this process, without Ray Train: `training.num_workers: 0`, and wherever no cluster is wanted.

The same name and storage resume by themselves, as on Ray: the run's checkpoints are found in its folder (`shelf`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.data.prepared import Prepared
from pipeline.errors import SpecError, StorageError
from pipeline.progress import WARNING, Progress
from pipeline.release.recorder import RunRecorder
from pipeline.spec import RunSpec, TrainingSpec
from pipeline.storage import Store, open_store
from pipeline.training.checkpoint import Position, unsent_points
from pipeline.training.ending import Trained, leave
from pipeline.training.following import describe
from pipeline.training.health import HealthWarning, warnings_of
from pipeline.training.initial import read_weights
from pipeline.training.processors import processors
from pipeline.training.saving import Saver, refusal
from pipeline.training.session import Session
from pipeline.training.shelf import Shelf, shelf_of
from pipeline.training.steps import Stepper
from pipeline.training.termination import Termination
from pipeline.training.tracing import keep_trace
from pipeline.training.wishes import Wish


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
            self.saver = Saver(shelf, spec, recorder, beside)
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

    Raises: SpecError when it is to use a GPU and there is none; NonFiniteLossError; OutOfMemoryError;
    TrainingFailedError when it went back to its start and the time is over; PreparedDataError when a streamed shard is
    damaged; CheckpointError when there are checkpoints and none can be trusted; StorageError; SystemExit when SIGTERM
    stopped it, with a checkpoint if it came within `training.stop_seconds`.
    """
    device = device_of(spec.training)
    shelf = shelf_of(store, run_key, spec.training)
    found = shelf.find()
    shelf.clear()
    torch.set_num_threads(spec.training.threads_per_worker or processors())
    with shelf.opened(found.step) as resume_from:
        initial = read_weights(store, initial_weights) if initial_weights and resume_from is None else None
        session = Session(spec, prepared, device, resume_from=resume_from, initial_weights=initial)
        unsent = unsent_points(resume_from)
    recorder = None
    if tracking_uri and run_id:
        recorder = RunRecorder(tracking_uri, run_id, system_metrics=True)
        recorder.begin_with(unsent)

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
    with recorder or contextlib.nullcontext():
        try:
            if (warning := refusal(found, session.stepper.course)) is not None:
                hooks.warn(session.start, warning)
            with termination.within(spec.training.stop_seconds):
                end = session.run(hooks)
                hooks.close()
        except Exception:  # not SystemExit: who is to leave now waits for no checkpoint
            with contextlib.suppress(StorageError):  # what ended the training is raised, not what came after it
                hooks.close()
            raise
        finally:
            torch.set_flush_denormal(False)
    if termination.asked.is_set():
        leave(progress, end.step, session.training.steps)
    stepper = session.stepper
    warnings = warnings_of(stepper.course)
    return Trained(end.step, end.seconds, stepper.state.bundled_weights(), first_step_at, hooks.metrics, warnings)


def device_of(training: TrainingSpec) -> str:
    """Where this process trains. Raises: SpecError where that shall be a GPU: no other one will come, and a training of
    hours would take weeks without a word."""
    if training.use_gpu and torch.cuda.is_available():
        return "cuda"
    if training.use_gpu is True:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise SpecError(
            f"training.use_gpu is true, and this process has no GPU that PyTorch (built {built}) can use; mend that "
            "(nvidia-smi, CUDA_VISIBLE_DEVICES, the driver), or set training.use_gpu to auto or false, which trains on "
            "the CPU"
        )
    return "cpu"
