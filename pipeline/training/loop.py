"""The training loop: steps, reports, validation and checkpoints, until the limit or until nothing is gained any more.

Plain PyTorch, in every training worker; Ray, MLflow and the terminal come in through `Hooks`, tests pass a
list. Time is counted over resumptions. Nothing is synchronised with the device between reports. A training that
explodes is taken back to its last checkpoint here, where the spec asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.errors import NonFiniteLossError, TrainingFailedError
from pipeline.models.base import Batch
from pipeline.spec import TrainingSpec
from pipeline.training.checkpoint import Position
from pipeline.training.clock import Clock
from pipeline.training.course import Course
from pipeline.training.health import HealthWarning, Watch, note
from pipeline.training.instruments import Instruments
from pipeline.training.optimizer import lr_share
from pipeline.training.rollback import ExplodedError, WayBack
from pipeline.training.steps import Stepper
from pipeline.training.stopping import note_objective, should_stop
from pipeline.training.wishes import Agreement, Wish

ADDED_TOGETHER = 50
"""Steps whose means are added up at once."""

START = Position()

Validate = Callable[[Stepper, float], tuple[dict[str, float], dict[str, float]]]
"""Scores of the held-out split, and vital signs, at a progress in [0, 1]; all ranks call it together."""


class Hooks(Protocol):
    """What the loop tells the outside, and hears from it. Every rank calls each, equally often."""

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        """Means since the last report, averaged over ranks, under `train/…`, `health/…`, `validation/…`."""

    def warn(self, at: Position, warning: HealthWarning) -> None:
        """Say `warning`, which comes for the first time."""

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        """Save the state after `at.step` steps."""

    def trace(self, folder: Path) -> None:
        """Keep the files in `folder`, this rank's trace of some steps, where the spec asks for one."""

    def hear(self) -> Wish:
        """What this rank was asked for since it last obeyed, known at once: it is called after every step."""

    def obeyed(self, wish: Wish, at: Position) -> None:
        """All ranks agreed on `wish`, and the checkpoint it asks for is saved. HOLD is waited for in here."""


class _Means:
    """Running means of what steps report, kept on the device; each over the steps that reported it.

    They go on from those that a checkpoint between two reports found unreported. Values are added up some dozens at a
    time: an operation for each would be a hundredth of a small model's step.
    """

    def __init__(self, course: Course, device: torch.device) -> None:
        before, course.unreported = course.unreported, {}
        self.waiting: dict[str, list[Tensor]] = {}
        self.sums = {n: torch.tensor(total, dtype=torch.float64, device=device) for n, (total, _) in before.items()}
        self.counts = {name: count for name, (_, count) in before.items()}

    def add(self, means: dict[str, Tensor]) -> None:
        for name, value in means.items():
            values = self.waiting.setdefault(name, [])
            values.append(value.detach())
            if len(values) == ADDED_TOGETHER:
                self._add_up(name)

    def _add_all_up(self) -> None:
        for name in list(self.waiting):
            self._add_up(name)

    def _add_up(self, name: str) -> None:
        values = self.waiting.pop(name)
        total = torch.stack(values).double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + len(values)

    def unreported(self, world_size: int) -> dict[str, tuple[float, int]]:
        """The sums so far, in the mean over all ranks, and the counts."""
        self._add_all_up()
        names = sorted(self.sums)
        stacked = torch.stack([self.sums[name] for name in names])
        if world_size > 1:
            dist.all_reduce(stacked)
            stacked /= world_size
        return {name: (total, self.counts[name]) for name, total in zip(names, stacked.tolist(), strict=True)}

    def take(self, world_size: int, measured: Sequence[float]) -> tuple[dict[str, float], list[float]]:
        """The means, and those of what each rank `measured`; both over all ranks."""
        self._add_all_up()
        names = sorted(self.sums)
        stacked = torch.stack([self.sums[name] / self.counts[name] for name in names])
        stacked = torch.cat([stacked, stacked.new_tensor(measured)])
        if world_size > 1:
            dist.all_reduce(stacked)
            stacked /= world_size
        self.sums, self.counts = {}, {}
        values = stacked.tolist()
        keys = [name if "/" in name else f"train/{name}" for name in names]
        return dict(zip(keys, values[: len(keys)], strict=True)), values[len(keys) :]


class _Waiting:
    """The batches, and the seconds that the training thread has waited for them."""

    def __init__(self, batches: Batches, instruments: Instruments) -> None:
        self.batches, self.instruments = batches, instruments
        self.seconds = 0.0

    def batch(self, number: int) -> Batch:
        start = time.perf_counter()
        with self.instruments.part("data"):
            batch = self.batches.batch(number)
        self.seconds += time.perf_counter() - start
        return batch

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        self.batches.close()


def progress_of(training: TrainingSpec, step: int, seconds: float) -> float:
    """The share of the training done, in [0, 1]: by steps or by time, whichever is nearer its end."""
    by_time = 0.0 if training.max_seconds is None else seconds / training.max_seconds
    return min(1.0, max(step / training.steps, by_time))


def is_due(training: TrainingSpec, seconds: float) -> bool:
    """Whether `seconds` without a checkpoint are enough for one by the clock."""
    return training.checkpoint_minutes is not None and seconds >= 60 * training.checkpoint_minutes


def run_loop(
    stepper: Stepper,
    batches: Batches,
    training: TrainingSpec,
    hooks: Hooks,
    start: Position = START,
    validate: Validate | None = None,
    instruments: Instruments | None = None,
) -> Position:
    """Train from `start` to the limit, or until early stopping ends it; return where it ended.

    Reports come every `report_every` steps, validation every `validate_every`, checkpoints every `checkpoint_every`,
    each also at the end; a report goes before a validation and a checkpoint, so that nothing unhealthy is saved and a
    resumed run judges the same means. A checkpoint by the clock waits for a report that comes anyway, so that its time
    changes no report. `train/data_wait_share` is the share (0 to 1, lower is better, mean over ranks) of the time since
    the last report that steps spent waiting for their batches; `train/checkpoint_seconds` is how long the checkpoint at
    the last report stopped this rank (0 without one). `time/…_seconds` are the parts of a step (`timing.PARTS`; seconds
    a step, mean over ranks), which add up to all the time since the last report. What `hooks` hear may ask for a
    checkpoint after any step, which says nothing else: a run resumed from it reports as one that went through. Raises:
    NonFiniteLossError; TrainingFailedError when it went back to its start and the time is over.
    """
    clock = Clock(start.seconds, stepper.world_size)
    step = start.step
    progress = progress_of(training, step, clock.look())
    instruments = instruments or Instruments(stepper)
    waiting = _Waiting(batches, instruments)
    examples_per_step = training.batch_size * stepper.batches_per_step
    watch = Watch(stepper.course)
    norms = {name: float(value) for name, value in stepper.weight_norms().items()}
    watch.begin(norms, stepper.model.annealed_share(progress))
    back = WayBack(training.health, stepper, step)
    means, last_time, last_step = _Means(stepper.course, stepper.device), time.monotonic(), step
    agreement = Agreement(hooks.hear, clock, stepper.world_size)
    saved_at, saving_seconds = clock.shared, 0.0
    while progress < 1.0 and not should_stop(training, stepper.course):
        try:
            with instruments.step(step):
                means.add(stepper.step(step, waiting, progress))
            share = lr_share(training, step, progress) * stepper.course.lr_factor
            step += 1
            wish = agreement.look()
            progress = progress_of(training, step, clock.look())
            ends, at = progress >= 1.0, Position(step, clock.own())
            validates = validate is not None and (ends or step % training.validate_every == 0)
            saves, reports = ends or step % training.checkpoint_every == 0, step % training.report_every == 0
            if not (saves or validates or reports):
                if wish is Wish.NONE:
                    continue
                unreported = means.unreported(stepper.world_size)
                stepper.check_finite({name: total for name, (total, _) in unreported.items()}, step)
                stepper.course.unreported = unreported
                with instruments.part("checkpoint"):
                    with stepper.state.gathered():
                        hooks.checkpoint(at, stepper)
                    back.keep(step)
                    stepper.course.unreported = {}
                    hooks.obeyed(wish, at)
                if wish is Wish.END:
                    return at
                continue
            saves = saves or is_due(training, clock.shared - saved_at)
            with instruments.part("report"):
                means.add(stepper.weight_norms())
                metrics, (waited, *measured) = means.take(stepper.world_size, [waiting.take(), *instruments.take()])
            stepper.check_finite(metrics, step)
            warnings = watch.report(step, metrics, stepper.model.annealed_share(progress)) + stepper.noticed(step)
            if training.micro_batch is not None:
                metrics["train/micro_batch"] = float(stepper.micro_batch.size)
                said, stepper.micro_batch.said = stepper.micro_batch.said, []
                warnings += [note(stepper.course, "out_of_memory", message, step) for message in said]
            back.check(warnings)
        except (NonFiniteLossError, ExplodedError) as error:
            step, warning = back.go(error, step)
            hooks.warn(Position(step, clock.own()), warning)
            progress, watch = progress_of(training, step, clock.look()), Watch(stepper.course)
            if progress >= 1.0 and step == start.step:
                # Nothing of this start was saved, and there is no time to train anew: that is no model.
                raise TrainingFailedError(
                    f"{error}; it went back to step {step}, where it began, and training.max_seconds "
                    f"{training.max_seconds} is over; lower training.lr, or raise training.max_seconds"
                ) from error
            waiting.take()
            instruments.went_back()
            means, last_time, last_step = _Means(stepper.course, stepper.device), time.monotonic(), step
            continue
        elapsed = max(time.monotonic() - last_time, 1e-9)
        metrics["train/lr"] = training.lr * share
        metrics["train/examples_per_second"] = (step - last_step) * examples_per_step / elapsed
        metrics["train/steps_per_second"] = (step - last_step) / elapsed
        metrics["train/data_wait_share"] = waited / elapsed
        metrics |= instruments.metrics(measured, step - last_step, elapsed)
        metrics["train/checkpoint_seconds"], saving_seconds = saving_seconds, 0.0
        if validate is not None and validates:
            with instruments.part("validation"):
                scores, signs = validate(stepper, progress)
            metrics |= instruments.validated(step - last_step)
            objective = scores[stepper.model.objective()]
            note_objective(training, stepper, step, objective)
            warnings += watch.validation(step, progress, objective, metrics, scores, signs)
            metrics |= {f"validation/{name}": value for name, value in scores.items()}
            metrics |= {f"health/{name}": value for name, value in signs.items()}
            ends = ends or should_stop(training, stepper.course)
        with instruments.part("recording"):
            hooks.report(at, metrics)
            for warning in warnings:
                if warning.times == 1:
                    hooks.warn(at, warning)
        if ends or saves or wish:
            began = time.monotonic()
            with instruments.part("checkpoint"):
                with stepper.state.gathered():
                    hooks.checkpoint(at, stepper)
                back.keep(step)
            saved_at, saving_seconds = clock.shared, time.monotonic() - began
        if wish and not ends:
            with instruments.part("checkpoint"):
                hooks.obeyed(wish, at)
            if wish is Wish.END:
                return at
        last_time, last_step = time.monotonic(), step
    agreement.close()
    return Position(step, clock.own())
