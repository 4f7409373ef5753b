"""The training loop: steps, reports, validation and checkpoints, until the limit.

Plain PyTorch, in every training worker; Ray, MLflow and the terminal come in through `Hooks`, tests pass a
list. Time is counted over resumptions. Nothing is synchronised with the device between reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.models.base import Batch
from pipeline.spec import TrainingSpec
from pipeline.training.checkpoint import Position
from pipeline.training.steps import Stepper, lr_share

CLOCK_EVERY = 10
"""Steps between two looks at a shared clock, which costs a broadcast when there are several workers."""

START = Position()

Validate = Callable[[Stepper], dict[str, float]]
"""Scores of the held-out split; all ranks call it together."""


class Hooks(Protocol):
    """What the loop tells the outside. Every rank calls both, equally often."""

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        """Means since the last report, averaged over ranks, under `train/…`, `validation/…`."""

    def checkpoint(self, at: Position, stepper: Stepper) -> None:
        """Save the state after `at.step` steps."""


@dataclass
class _Means:
    """Running means of what steps report, kept on the device."""

    sums: dict[str, Tensor]
    count: int = 0

    def add(self, means: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in means.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def take(self, world_size: int, waited: float) -> tuple[dict[str, float], float]:
        """The means, and the mean of the seconds that each rank `waited`; both over all ranks."""
        names = sorted(self.sums)
        stacked = torch.stack([self.sums[name] for name in names]) / max(self.count, 1)
        stacked = torch.cat([stacked, stacked.new_tensor([waited])])
        if world_size > 1:
            dist.all_reduce(stacked)
            stacked /= world_size
        self.sums, self.count = {}, 0
        *means, waited = stacked.tolist()
        return dict(zip(names, means, strict=True)), waited


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
    """Train from `start` to the limit; return where it ended.

    Reports come every `report_every` steps and at the end, validation every `validate_every` and at the end,
    checkpoints every `checkpoint_every` and at the end. `train/data_wait_share` is the share (0 to 1, lower is better,
    mean over ranks) of the time since the last report that steps spent waiting for their batches. Raises:
    NonFiniteLossError.
    """
    clock = Clock(start.seconds, training.max_seconds, stepper.world_size, stepper.device)
    means = _Means({})
    step = start.step
    progress = progress_of(training, step, clock.look(step))
    waiting = _Waiting(batches)
    last_time, last_step = time.monotonic(), step
    examples_per_step = training.batch_size * stepper.batches_per_step
    while progress < 1.0:
        means.add(stepper.step(step, waiting, progress))
        share = lr_share(training, step, progress)
        step += 1
        progress = progress_of(training, step, clock.look(step))
        ends = progress >= 1.0
        at = Position(step, clock.own())
        metrics: dict[str, float] = {}
        if ends or step % training.report_every == 0:
            seen, waited = means.take(stepper.world_size, waiting.take())
            metrics = {f"train/{name}": value for name, value in seen.items()}
            stepper.check_finite(metrics, step)
            elapsed = max(time.monotonic() - last_time, 1e-9)
            metrics["train/lr"] = training.lr * share
            metrics["train/examples_per_second"] = (step - last_step) * examples_per_step / elapsed
            metrics["train/steps_per_second"] = (step - last_step) / elapsed
            metrics["train/data_wait_share"] = waited / elapsed
        if validate is not None and (ends or step % training.validate_every == 0):
            metrics |= {f"validation/{name}": value for name, value in validate(stepper).items()}
        if metrics:
            hooks.report(at, metrics)
        if ends or step % training.checkpoint_every == 0:
            hooks.checkpoint(at, stepper)
        if ends or step % training.report_every == 0:
            last_time, last_step = time.monotonic(), step
    return Position(step, clock.own())
