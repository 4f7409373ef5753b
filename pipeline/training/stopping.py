"""The best validation of a training: keeping the weights that it was of, and stopping when none better comes.

Plain PyTorch, on every rank alike: the objective was reduced over all ranks.
"""

from __future__ import annotations

import math

from pipeline.spec import TrainingSpec
from pipeline.training.course import Course
from pipeline.training.steps import Stepper


def keeps_best(training: TrainingSpec) -> bool:
    """Whether the weights of the best validation are those that are bundled."""
    return training.keep_best or training.early_stopping is not None


def note_objective(training: TrainingSpec, stepper: Stepper, step: int, objective: float) -> None:
    """Remember a validation's objective (lower is better; one that is not a number is no gain) and, where they are
    wanted, the weights for scores that it was of."""
    course = stepper.course
    if not math.isfinite(objective):
        course.without_gain += 1
        return
    if course.best_objective is None or objective < course.best_objective:
        course.best_objective, course.best_step = objective, step
        if keeps_best(training):
            stepper.state.keep_as_best()
    least = 0.0 if training.early_stopping is None else training.early_stopping.min_delta
    if course.gained_from is None or objective < course.gained_from - least:
        course.gained_from, course.without_gain = objective, 0
    else:
        course.without_gain += 1


def should_stop(training: TrainingSpec, course: Course) -> bool:
    """Whether as many validations as `early_stopping.patience` brought no gain."""
    return training.early_stopping is not None and course.without_gain >= training.early_stopping.patience
