"""A training session: model, stepper, batches and validation, built from a spec and a prepared set, and run.

Plain PyTorch, in every training worker; the launchers (in this process, as a Train run, as a trial) differ only
in the rank, the device and the hooks they bring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.feed import make_batches, rows_in_memory
from pipeline.data.prepared import Prepared
from pipeline.errors import TransferError
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models import build_model
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position, load_checkpoint
from pipeline.training.initial import load_weights
from pipeline.training.loop import Hooks, run_loop
from pipeline.training.steps import Stepper

VALIDATION_EXAMPLES = 1000
"""Held-out rows that validation during training looks at."""


class Session:
    """Everything one rank needs to train `spec` on `prepared`.

    `initial_weights` are those that `training.init_from` names, where there is no checkpoint to resume from.
    """

    def __init__(
        self,
        spec: RunSpec,
        prepared: Prepared,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        resume_from: Path | None = None,
        initial_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.spec, self.rank, self.world_size = spec, rank, world_size
        self.layout = prepared.layout
        device = torch.device(device)
        model = build_model(spec, self.layout)
        if spec.training.init_from is not None and resume_from is None:
            if initial_weights is None:
                raise TransferError(
                    f"training.init_from {spec.training.init_from!r}: a trial of a campaign begins with new weights; "
                    "leave it out of the base conf"
                )
            # Before the stepper is made: its moving average begins with these weights.
            load_weights(model, initial_weights, spec.training.init_from)
        self.stepper = Stepper(model, spec.training, spec.seed, device, rank, world_size)
        training = spec.training
        self.batches = make_batches(prepared, "train", training, spec.seed, rank, world_size, device)
        has_validation = prepared.manifest.splits.get("validation", {}).get("rows", 0) > 0
        # In memory whatever `training.load`, and of a larger split what `memory_megabytes` holds: its first rows.
        most = rows_in_memory(prepared.layout, training.memory_megabytes)
        self.held_out = prepared.load_split("validation", verify=False, max_rows=most) if has_validation else None
        self.start = Position()
        if resume_from is not None:
            self.start = load_checkpoint(resume_from, self.stepper, spec)

    def run(self, hooks: Hooks) -> Position:
        """Train to the limit, once. Raises: NonFiniteLossError; PreparedDataError when a streamed shard is damaged."""
        validate = None if self.held_out is None else self.validate
        try:
            return run_loop(self.stepper, self.batches, self.spec.training, hooks, self.start, validate)
        finally:
            self.batches.close()

    def validate(self, stepper: Stepper) -> dict[str, float]:
        """Scores on the first rows of the validation split, with one importance sample, which the model heeds; a
        collective."""
        assert self.held_out is not None
        quick = self.spec.model_copy(
            update={"evaluation": self.spec.evaluation.model_copy(update={"max_examples": VALIDATION_EXAMPLES})}
        )
        with stepper.averaged_weights() as model:
            samples, model.importance_samples = model.importance_samples, 1
            sums = evaluate_split(
                model, self.held_out, self.layout, quick, self.spec.seed, self.rank, self.world_size, stepper.device
            )
            model.importance_samples = samples
        if self.world_size > 1:
            gathered: list[dict[str, torch.Tensor] | None] = [None] * self.world_size
            dist.all_gather_object(gathered, sums)
            sums = {}
            for part in gathered:
                for name, value in (part or {}).items():
                    sums[name] = sums[name] + value if name in sums else value
        scores = stepper.model.summarise(sums)
        stepper.model.heed(scores)
        return scores
