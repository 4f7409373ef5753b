"""What runs in a trial's process: a training inline, or a Ray Train run of several workers.  [ray]

Reports go to Tune, which may end the trial at any of them, and to the trial's own MLflow run. The process is used
again for the next trial, so what all trials share (MLflow, the prepared data) is loaded once.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pipeline.data.prepared import Prepared, open_prepared
from pipeline.errors import AtelierError, NonFiniteLossError, TrackingError
from pipeline.evaluation.features import find_extractors
from pipeline.evaluation.fidelity import FrechetDistance
from pipeline.evaluation.metric import Subject
from pipeline.progress import silent
from pipeline.release.recorder import RunRecorder
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store
from pipeline.training.checkpoint import Position
from pipeline.training.health import HealthWarning
from pipeline.training.in_process import device_of
from pipeline.training.session import Session
from pipeline.training.steps import Stepper
from pipeline.training.wishes import Unasked

FAILURE = "failure"


@dataclass(frozen=True)
class TrialWork:
    """What crosses from the driver into every trial; its number, spec and runs come with Tune's configuration."""

    storage: str
    prepared_key: str
    tracking_uri: str
    objective: str
    mode: str


def run_trial(config: dict[str, Any], work: TrialWork) -> None:
    """Train one trial; Tune calls this. `config`: `number`, `spec`, `run_id`, `run_key`.

    A loss that is not finite, or another failure that would come again, is reported as the trial's result and does
    not raise: Tune would print a traceback and start a new process.
    """
    spec = make_spec(config["spec"])
    try:
        if spec.training.most_workers > 1:
            _train_nested(spec, config, work)
        else:
            _train_inline(spec, config, work)
    except AtelierError as error:
        worst = float("inf") if work.mode == "min" else float("-inf")
        tune.report({"step": 0, "seconds": 0.0, work.objective: worst, FAILURE: f"{type(error).__name__}: {error}"})


# --- one worker, in this process ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _opened(storage: str, key: str) -> Prepared:
    """The prepared set, opened once for all trials of this process."""
    return open_prepared(open_store(storage), key)


class TrialHooks(Unasked):
    """Reports of an inline trial: to MLflow always, to Tune where there was a validation."""

    def __init__(self, session: Session, prepared: Prepared, config: dict[str, Any], work: TrialWork) -> None:
        self.session, self.prepared, self.work = session, prepared, work
        self.recorder = RunRecorder(work.tracking_uri, config["run_id"])

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        scores = {name: value for name, value in metrics.items() if name.startswith("validation/")}
        if scores and self.work.objective not in scores:
            scores[self.work.objective] = self._frechet()
        self.recorder.log_metrics({**metrics, **scores, "train/seconds": at.seconds}, at.step)
        if scores:
            value = scores[self.work.objective]
            if not math.isfinite(value):
                raise NonFiniteLossError(f"{self.work.objective} is {value} after {at.step} steps")
            process = f"{os.uname().nodename}:{os.getpid()}"
            # When Tune ends the trial, this does not return: it raises SystemExit.
            tune.report({"step": at.step, "seconds": at.seconds, "process": process, **scores})

    def warn(self, at: Position, warning: HealthWarning) -> None:
        self.recorder.log_tags({f"atelier.warning.{warning.kind}": warning.in_words()})

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        """None: trials are short, and one that was cut off starts again."""

    def trace(self, folder: Path) -> None:
        # A trace is no reason to end a trial.
        with contextlib.suppress(TrackingError):
            self.recorder.log_folder(folder, "profile")

    def _frechet(self) -> float:
        """The Fréchet distance of samples to the validation split, in the space of the spec's extractor."""
        with self.session.stepper.state.averaged_weights() as model:
            assert self.session.held_out is not None
            subject = Subject(
                spec=self.session.spec,
                layout=self.prepared.layout,
                codec=self.prepared.codec,
                model=model,
                arrays=self.session.held_out,
                split=self.prepared.manifest.splits["validation"],
                device=self.session.stepper.device,
                extractor=find_extractors(self.session.spec, self.prepared, self.session.stepper.device)[0],
                prepared=self.prepared,
            )
            metric = FrechetDistance()
            return metric.finish(metric.measure(subject), subject)["frechet"].value


def _train_inline(spec: RunSpec, config: dict[str, Any], work: TrialWork) -> None:
    torch.set_num_threads(spec.training.threads_per_worker or 1)
    torch.set_flush_denormal(True)  # as in the workers of Ray Train
    prepared = _opened(work.storage, work.prepared_key)
    session = Session(spec, prepared, device_of(spec.training))
    hooks = TrialHooks(session, prepared, config, work)
    with hooks.recorder:
        session.run(hooks)


# --- several workers ------------------------------------------------------------------------------------------


def _train_nested(spec: RunSpec, config: dict[str, Any], work: TrialWork) -> None:
    """A Ray Train run; its reports reach Tune through Ray's callback, which runs in Train's controller."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipeline.training.launch import train_with_ray

    store = open_store(work.storage)
    train_with_ray(
        spec,
        open_prepared(store, work.prepared_key),
        store,
        config["run_key"],
        work.tracking_uri,
        config["run_id"],
        silent,
        callbacks=[TuneReportCallback()],
    )
