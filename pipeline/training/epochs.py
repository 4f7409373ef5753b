"""`training.epochs` as a number of steps: passes over the training split, by the batches' own count.

Plain Python, in every training worker, and on the driver for the plan of a run.
"""

from __future__ import annotations

import math

from pipeline.spec import TrainingSpec


def with_limit(training: TrainingSpec, batches_per_epoch: float, batches_per_step: int) -> TrainingSpec:
    """`training` with the `steps` after which it ends by steps or by epochs, whichever comes first.

    `batches_per_epoch` global batches hold every example of the training split once, or every token of a text;
    `batches_per_step` of them are taken in a step.
    """
    if training.epochs is None:
        return training
    # Not a step more for the rounding of a product.
    steps = max(1, math.ceil(training.epochs * batches_per_epoch / batches_per_step - 1e-9))
    return training.model_copy(update={"steps": min(training.steps, steps)})
