"""The way back: a training that explodes goes on from its last checkpoint with a smaller learning rate.

Plain PyTorch, on every rank. What to go back to is a copy in memory of what the last checkpoint holds, taken when that
was written (at first, of where the run began), so that a run that is killed after it went back, and resumed from the
checkpoint on disk, explodes and goes back the same way. Nothing unhealthy is saved: rules are checked before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import NonFiniteLossError
from pipeline.spec import HealthSpec
from pipeline.training.course import Course
from pipeline.training.health import HealthWarning, note
from pipeline.training.kinds import KINDS
from pipeline.training.state import copied
from pipeline.training.steps import Stepper


@dataclass(frozen=True)
class Snapshot:
    """All that changes in a stepper, copied into the host's memory; the carried state is this rank's alone."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor]
    carry: tuple[Tensor, ...] | None
    best: dict[str, Tensor]
    course: dict[str, Any]


def take_snapshot(stepper: Stepper) -> Snapshot:
    """What `restore` goes back to, as often as wanted."""
    carry = None if stepper.state.carry is None else tuple(part.to("cpu", copy=True) for part in stepper.state.carry)
    weights, average = copied(stepper.state.weights()), copied(stepper.state.averages())
    return Snapshot(
        weights, average, copied(stepper.state.optimizer_tensors()), carry, stepper.state.best, stepper.course.as_dict()
    )


def restore(stepper: Stepper, snapshot: Snapshot) -> None:
    """Bring `stepper` back to a snapshot of it."""
    stepper.load(snapshot.weights, copied(snapshot.average), copied(snapshot.optimizer_tensors), ())
    stepper.state.carry = None if snapshot.carry is None else tuple(part.to(stepper.device) for part in snapshot.carry)
    stepper.state.best, stepper.course = snapshot.best, Course.from_dict(copy.deepcopy(snapshot.course))


class ExplodedError(Exception):
    """A training exploded, by a warning of `kind`: what the loop raises to go back."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WayBack:
    """The last good state of a training, where its spec asks for rollbacks."""

    def __init__(self, health: HealthSpec, stepper: Stepper, step: int) -> None:
        self.health, self.stepper = health, stepper
        self.step = step
        self.snapshot: Snapshot | None = None
        self.keep(step)

    def keep(self, step: int) -> None:
        """The state after `step` steps is good: go back to it from now on."""
        if self.health.rollback:
            self.step, self.snapshot = step, take_snapshot(self.stepper)

    def check(self, warnings: Sequence[HealthWarning]) -> None:
        """Raises: ExplodedError when a warning is one to go back for, and the rollbacks are not used up."""
        for warning in warnings:
            if warning.kind in self.health.rollback_on and self._may():
                raise ExplodedError(warning.kind, warning.message)

    def go(self, error: ExplodedError | NonFiniteLossError, step: int) -> tuple[int, HealthWarning]:
        """Back to the last good state after `error` came in step `step`: the step to go on with, and what to say.

        Raises: NonFiniteLossError, the one given, when the spec asks for no rollback of it or they are used up.
        """
        kind = error.kind if isinstance(error, ExplodedError) else "non_finite"
        if self.snapshot is None or kind not in self.health.rollback_on or not self._may():
            assert isinstance(error, NonFiniteLossError), "a rollback that is not allowed was asked for"
            tried = len(self.stepper.course.rollbacks)
            raise NonFiniteLossError(f"{error}; went back {tried} times" if tried else str(error)) from error
        exploded = self.stepper.course
        restore(self.stepper, self.snapshot)
        course = self.stepper.course
        course.rollbacks = [*exploded.rollbacks, step]
        course.lr_factor = exploded.lr_factor * self.health.lr_factor
        course.warnings = exploded.warnings
        number, most = len(course.rollbacks), self.health.max_rollbacks
        if kind == "non_finite":
            note(course, kind, str(error), step)
        message = (
            f"{KINDS[kind].title.lower()} at step {step:,}: {error}; back to step {self.step:,} with "
            f"{course.lr_factor:g} times the learning rate (rollback {number} of {most})"
        )
        said = note(course, "rolled_back", message, step)
        # Each time is said, not only the first.
        return self.step, HealthWarning(said.kind, message, step, step, said.times)

    def _may(self) -> bool:
        return self.health.rollback and len(self.stepper.course.rollbacks) < self.health.max_rollbacks
