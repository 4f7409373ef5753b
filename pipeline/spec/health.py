"""The spec's `training.health` and `training.early_stopping`: what a training does when it goes wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.reading import Count, Strict

RollbackKind = Literal["non_finite", "exploding_gradient", "exploding_weights", "loss_rising"]


class HealthSpec(Strict):
    """What a training does when it explodes. Its warnings are given in any case (`pipeline/training/health.py`).

    With `rollback` a training in which one of `rollback_on` happens goes back to its last checkpoint (its start, where
    there is none yet) and goes on from there with `lr_factor` times the learning rate, at most `max_rollbacks` times;
    each time counts on from the factor before. No batch is left out: an explosion is of these weights at this rate, and
    with a smaller one the same batches did no harm (Chowdhery et al. 2022, section 5.1, saw that the batches of a spike
    gave none from other weights), while every example is still seen once an epoch. Seconds in the loop count on, so
    `max_seconds` holds; with a schedule over time the learning rate is then further down than it was at that step.
    With `training.checkpoint_minutes` the clock decides which step's checkpoint is the last, and how far it goes back.
    The last checkpoint is kept in memory for that: as much as the weights and the optimisers take.
    """

    rollback: bool = False
    rollback_on: tuple[RollbackKind, ...] = ("non_finite", "exploding_gradient", "exploding_weights")
    max_rollbacks: Count = 2
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5


class EarlyStoppingSpec(Strict):
    """When a training ends before its limit: after `patience` validations in a row in which the held-out objective was
    not more than `min_delta` (in its own unit) below the lowest before.

    A validation comes every `training.validate_every` steps and looks at the first 1,000 held-out rows. The cosine
    schedule runs over `steps` or `max_seconds` as if nothing stopped it, and most of a training's gain comes at its
    low end: take `schedule: constant`, or limits not far beyond where the training is thought to stop.
    """

    patience: Count = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0
