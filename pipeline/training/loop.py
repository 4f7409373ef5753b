"""The training loop: steps, reports, validation and checkpoints, until the limit or until nothing is gained any more.

Plain PyTorch, in every training worker; Ray, MLflow and the terminal come in through `Hooks`, tests pass a
list. Time is counted over resumptions. Nothing is synchronised with the device between reports. A training that
explodes is taken back to its last checkpoint here, where the spec asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.errors import NonFiniteLossError, TrainingFailedError
from pipeline.models.base import Batch
from pipeline.spec import TrainingSpec
from pipeline.training.checkpoint import Position
from pipeline.training.health import HealthWarning, Watch
from pipeline.training.rollback import ExplodedError, WayBack
from pipeline.training.steps import Stepper, lr_share
from pipeline.training.stopping import note_objective, should_stop

CLOCK_EVERY = 10
"""Steps between two looks at a shared clock, which costs a broadcast when there are several workers."""

START = Position()

Validate = Callable[[Stepper, float], tuple[dict[str, float], dict[str, float]]]
"""Scores of the held-out split, and vital signs, at a progress in [0, 1]; all ranks call it together."""


class Hooks(Protocol):
    """What the loop tells the outside. Every rank calls each, equally often."""

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        """Means since the last report, averaged over ranks, under `train/…`, `health/…`, `validation/…`."""

    def warn(self, at: Position, warning: HealthWarning) -> None:
        """Say `warning`, which comes for the first time."""

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        """Save the state after `at.step` steps."""


class _Means:
    """Running means of what steps report, kept on the device; each over the steps that reported it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, means: dict[str, Tensor]) -> None:
        for name, value in means.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, world_size: int, waited: float) -> tuple[dict[str, float], float]:
        """The means, and the mean of the seconds that each rank `waited`; both over all ranks."""
        names = sorted(self.sums)
        stacked = torch.stack([self.sums[name] / self.counts[name] for name in names])
        stacked = torch.cat([stacked, stacked.new_tensor([waited])])
        if world_size > 1:
            dist.all_reduce(stacked)
            stacked /= world_size
        self.sums, self.counts = {}, {}
        *means, waited = stacked.tolist()
        keys = [name if "/" in name else f"train/{name}" for name in names]
        return dict(zip(keys, means, strict=True)), waited


class _Waiting:
    """The batches, and the seconds that the training thread has waited for them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.seconds = 0.0

    def batch(self, number: int) -> Batch:
        start = time.perf_counter()
        batch = self.batches.batch(number)
        self.seconds += time.perf_counter() - start
        return batch

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        self.batches.close()


class Clock:
    """Seconds in the loop, over resumptions, that all ranks agree on: rank 0's, looked at now and then."""

    def __init__(self, before: float, limit: float | None, world_size: int, device: torch.device) -> None:
        self.before, self.limit, self.world_size, self.device = before, limit, world_size, device
        self.start = time.monotonic()
        self.shared = before

    def own(self) -> float:
        return self.before + time.monotonic() - self.start

    def look(self, step: int) -> float:
        """The seconds that all ranks use at this step."""
        if self.world_size == 1:
            self.shared = self.own()
        elif self.limit is not None and step % CLOCK_EVERY == 0:
            seconds = torch.tensor(self.own(), dtype=torch.float64, device=self.device)
            dist.broadcast(seconds, 0)
            self.shared = float(seconds)
        return self.shared


def progress_of(training: TrainingSpec, step: int, seconds: float) -> float:
    """The share of the training done, in [0, 1]: by steps or by time, whichever is nearer its end."""
    by_time = 0.0 if training.max_seconds is None else seconds / training.max_seconds
    return min(1.0, max(step / training.steps, by_time))


def run_loop(
    stepper: Stepper,
    batches: Batches,
    training: TrainingSpec,
    hooks: Hooks,
    start: Position = START,
    validate: Validate | None = None,
) -> Position:
    """Train from `start` to the limit, or until early stopping ends it; return where it ended.

    Reports come every `report_every` steps, validation every `validate_every`, checkpoints every `checkpoint_every`,
    each also at the end; a report goes before a validation and a checkpoint, so that nothing unhealthy is saved and a
    resumed run judges the same means. `train/data_wait_share` is the share (0 to 1, lower is better, mean over ranks)
    of the time since the last report that steps spent waiting for their batches. Raises: NonFiniteLossError.
    """
    clock = Clock(start.seconds, training.max_seconds, stepper.world_size, stepper.device)
    step = start.step
    progress = progress_of(training, step, clock.look(step))
    waiting = _Waiting(batches)
    means, last_time, last_step = _Means(), time.monotonic(), step
    examples_per_step = training.batch_size * stepper.batches_per_step
    watch = Watch(stepper.course)
    watch.begin({name: float(value) for name, value in stepper.weight_norms().items()})
    back = WayBack(training.health, stepper, step)
    while progress < 1.0 and not should_stop(training, stepper.course):
        try:
            means.add(stepper.step(step, waiting, progress))
            share = lr_share(training, step, progress) * stepper.course.lr_factor
            step += 1
            progress = progress_of(training, step, clock.look(step))
            ends, at = progress >= 1.0, Position(step, clock.own())
            validates = validate is not None and (ends or step % training.validate_every == 0)
            saves = ends or step % training.checkpoint_every == 0
            if not (saves or validates or step % training.report_every == 0):
                continue
            means.add(stepper.weight_norms())
            metrics, waited = means.take(stepper.world_size, waiting.take())
            stepper.check_finite(metrics, step)
            warnings = watch.report(step, metrics) + stepper.noticed(step)
            back.check(warnings)
        except (NonFiniteLossError, ExplodedError) as error:
            step, warning = back.go(error, step)
            hooks.warn(Position(step, clock.own()), warning)
            progress, watch = progress_of(training, step, clock.look(step)), Watch(stepper.course)
            if progress >= 1.0 and step == start.step:
                # Nothing of this start was saved, and there is no time to train anew: that is no model.
                raise TrainingFailedError(
                    f"{error}; it went back to step {step}, where it began, and training.max_seconds "
                    f"{training.max_seconds} is over; lower training.lr, or raise training.max_seconds"
                ) from error
            waiting.take()
            means, last_time, last_step = _Means(), time.monotonic(), step
            continue
        elapsed = max(time.monotonic() - last_time, 1e-9)
        metrics["train/lr"] = training.lr * share
        metrics["train/examples_per_second"] = (step - last_step) * examples_per_step / elapsed
        metrics["train/steps_per_second"] = (step - last_step) / elapsed
        metrics["train/data_wait_share"] = waited / elapsed
        if validate is not None and validates:
            scores, signs = validate(stepper, progress)
            objective = scores[stepper.model.objective()]
            note_objective(training, stepper, step, objective)
            warnings += watch.validation(step, progress, objective, metrics, scores, signs)
            metrics |= {f"validation/{name}": value for name, value in scores.items()}
            metrics |= {f"health/{name}": value for name, value in signs.items()}
            ends = ends or should_stop(training, stepper.course)
        hooks.report(at, metrics)
        for warning in warnings:
            if warning.times == 1:
                hooks.warn(at, warning)
        if ends or saves:
            with stepper.gathered():
                hooks.checkpoint(at, stepper)
            back.keep(step)
        last_time, last_step = time.monotonic(), step
    return Position(step, clock.own())
