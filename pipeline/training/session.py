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

from pipeline.data.batches import SplitBatches
from pipeline.data.feed import make_batches, rows_in_memory
from pipeline.data.prepared import Prepared
from pipeline.data.windows import WindowedBatches
from pipeline.errors import OutOfMemoryError, PreparedDataError, TransferError
from pipeline.evaluation.likelihood import evaluate_split
from pipeline.models import build_model
from pipeline.models.base import Batch, GenerativeModel, Noise, Sums, make_generator
from pipeline.spec import RunSpec
from pipeline.training.checkpoint import Position, load_checkpoint
from pipeline.training.epochs import with_limit
from pipeline.training.initial import load_weights
from pipeline.training.instruments import Instruments
from pipeline.training.loop import Hooks, progress_of, run_loop
from pipeline.training.memory import in_short, in_use, is_out_of_memory, release, untainted
from pipeline.training.steps import Stepper
from pipeline.training.stopping import keeps_best
from pipeline.training.tensor_cores import tensor_cores
from pipeline.training.tracing import Trace

VALIDATION_EXAMPLES = 1000
"""Held-out rows that validation during training looks at."""
SIGN_EXAMPLES = 128
"""Rows of the held-out and of the training split that vital signs are taken of: the first ones, every time."""


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
        self.stepper.name_rows = lambda rows: prepared.names("train", rows)
        self.batches: SplitBatches = make_batches(prepared, "train", training, spec.seed, rank, world_size, device)
        if model.window is not None:
            length, lanes = self.layout.length, training.batch_size
            self.batches = WindowedBatches(self.batches, length, model.window, lanes, rank, world_size)
        self.training = with_limit(training, self.batches.per_epoch, self.stepper.batches_per_step)
        """The spec's, with the steps that its limit by epochs comes to."""
        has_validation = prepared.manifest.splits.get("validation", {}).get("rows", 0) > 0
        # In memory whatever `training.load`, and of a larger split what `memory_megabytes` holds: its first rows.
        most = rows_in_memory(prepared.layout, training.memory_megabytes)
        self.held_out = prepared.load_split("validation", verify=False, max_rows=most) if has_validation else None
        if self.held_out is None and keeps_best(training):
            raise PreparedDataError(
                "training.early_stopping and .keep_best go by the held-out objective, and the validation split is "
                "empty; give it a share in data.split.validation, or leave them out"
            )
        self.sign_batches = None if self.held_out is None or self.layout.continuous else self._sign_batches(prepared)
        self.start = Position()
        if resume_from is not None:
            self.start = load_checkpoint(resume_from, self.stepper, spec)

    def run(self, hooks: Hooks) -> Position:
        """Train to the limit, once. Raises: NonFiniteLossError; OutOfMemoryError; TrainingFailedError when it went back
        to its start and the time is over; PreparedDataError when a streamed shard is damaged."""
        validate = None if self.held_out is None else self.validate
        trace, profile = None, self.training.profile_spec()
        if profile is not None:
            left, stepper = self.training.steps - self.start.step, self.stepper
            trace = Trace(profile, left, stepper.model, stepper.timer, stepper.device, self.rank, hooks.trace)
        progress = progress_of(self.training, self.start.step, self.start.seconds)
        try:
            if progress < 1.0:
                self.stepper.find_micro_batch(self.start.step, self.batches, progress)
            with tensor_cores(self.spec.training, self.stepper.device), Instruments(self.stepper, trace) as instruments:
                return run_loop(self.stepper, self.batches, self.training, hooks, self.start, validate, instruments)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory beside the passes of a step ({in_use(self.stepper.device)}): {in_short(error)}; take a "
                "smaller model, or lower evaluation.batch_size where it was in a validation"
            ) from error
        finally:
            self.batches.close()

    def _sign_batches(self, prepared: Prepared) -> tuple[Batch, Batch]:
        """The first rows of the held-out split and of the training split."""
        seen = prepared.load_split("train", verify=False, max_rows=SIGN_EXAMPLES)
        device, batches = self.stepper.device, []
        for arrays in (self.held_out, seen):
            assert arrays is not None
            first = slice(SIGN_EXAMPLES)
            x, label = self.layout.to_model(arrays.x[first]).to(device), arrays.label[first].to(device)
            prompt = None if arrays.prompt is None else arrays.prompt[first].long().to(device)
            batches.append(Batch(x, label, torch.arange(len(x), device=device), prompt))
        return batches[0], batches[1]

    def validate(self, stepper: Stepper, progress: float) -> tuple[dict[str, float], dict[str, float]]:
        """Scores on the first rows of the validation split, with one importance sample, which the model heeds, and the
        model's vital signs; a collective."""
        assert self.held_out is not None
        quick = self.spec.model_copy(
            update={"evaluation": self.spec.evaluation.model_copy(update={"max_examples": VALIDATION_EXAMPLES})}
        )
        with stepper.state.averaged_weights() as model:
            samples, model.importance_samples = model.importance_samples, 1
            try:
                sums = self._sums(model, quick)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # The pieces that steps have freed may still be kept for others of their size.
                release(stepper.device)
                sums = untainted(torch.no_grad()(lambda: self._sums(model, quick)), stepper.device)
            model.importance_samples = samples
            signs = self._vital_signs(model, progress)
        if self.world_size > 1:
            gathered: list[dict[str, torch.Tensor] | None] = [None] * self.world_size
            dist.all_gather_object(gathered, sums)
            sums = {}
            for part in gathered:
                for name, value in (part or {}).items():
                    sums[name] = sums[name] + value if name in sums else value
        scores = stepper.model.summarise(sums)
        stepper.model.heed(scores)
        return scores, signs

    def _sums(self, model: GenerativeModel, spec: RunSpec) -> Sums:
        """This rank's part of the held-out split's sums."""
        assert self.held_out is not None
        ranks = self.rank, self.world_size
        return evaluate_split(model, self.held_out, self.layout, spec, self.spec.seed, *ranks, self.stepper.device)

    @torch.no_grad()
    def _vital_signs(self, model: GenerativeModel, progress: float) -> dict[str, float]:
        """Every rank takes them of the same batches with the same noise; their mean over ranks is what all judge."""
        if self.sign_batches is None:
            return {}
        device = self.stepper.device
        noise = Noise(make_generator(self.spec.seed, "signs", device=device))
        signs = model.vital_signs(*self.sign_batches, noise, progress)
        if not signs:
            return {}
        stacked = torch.stack([value.to(device).double() for value in signs.values()])
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return dict(zip(signs, stacked.tolist(), strict=True))
