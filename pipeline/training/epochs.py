"""`training.epochs` as a number of steps: passes over the training split, by the batches' own count.

Plain PyTorch, in every training worker, and on the driver for the plan of a run.
"""

from __future__ import annotations

import math

import torch

from pipeline.data.feed import make_batches
from pipeline.data.prepared import Prepared
from pipeline.data.windows import WindowedBatches
from pipeline.models import build_model
from pipeline.spec import RunSpec, TrainingSpec


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


def planned_steps(spec: RunSpec, prepared: Prepared) -> int:
    """The steps after which a training of `spec` ends at the latest; reads the manifest alone."""
    if spec.training.epochs is None:
        return spec.training.steps
    with torch.device("meta"):
        model = build_model(spec, prepared.layout)
    streamed = spec.training.model_copy(update={"load": "stream"})
    batches = make_batches(prepared, "train", streamed, spec.seed)
    batches.close()
    if model.window is not None:
        batches = WindowedBatches(batches, model.layout.length, model.window, spec.training.batch_size)
    taken = sum(phase.repeats for phase in model.phases() if phase.needs_data)
    return with_limit(spec.training, batches.per_epoch, taken).steps
