"""One training step: every phase of a model, in passes, with clipping and the moving average.

Plain PyTorch, in every training worker. All randomness of step s is derived from (seed, s), so that the
step's number is all that has to be saved of it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.data.batches import Batches
from pipeline.errors import NonFiniteLossError
from pipeline.models.base import GenerativeModel, Output, Phase, derive_seed
from pipeline.spec import TrainingSpec
from pipeline.training.accumulation import Joined, Run, cut, unsynchronised
from pipeline.training.blame import NameRows, explain, look
from pipeline.training.compiling import NOT_COMPILED, CompiledPhase
from pipeline.training.course import Course
from pipeline.training.freezing import Freezing
from pipeline.training.guard import Guard, NotFiniteError
from pipeline.training.health import HealthWarning, note
from pipeline.training.holding import PhaseModule, make_holding
from pipeline.training.memory import LASTING, MicroBatch, bytes_to_come, in_short, in_use, is_out_of_memory
from pipeline.training.optimizer import lr_share, make_optimizer
from pipeline.training.state import TrainingState
from pipeline.training.timing import make_timer

NORM_EVERY = 10
"""Steps between two looks at a gradient's norm where it is not clipped (a clipped one is known)."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrices of bfloat16 are multiplied faster than float32 there: by instructions of their own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Stepper:
    """Trains a model by steps; holds all that changes: the `state` of its tensors, and the `course` of the training.

    `batch_size` in `training` is global: this rank sees a slice of it. With more than one worker a process
    group must be initialised, and gradients are averaged over it.
    """

    def __init__(
        self,
        model: GenerativeModel,
        training: TrainingSpec,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.training, self.seed = training, seed
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.model, self.holding = model, make_holding(model, training, self.device, world_size)
        model.train()
        self.local_batch = training.batch_size // world_size
        self.half = training.precision == "bfloat16" or (
            training.precision == "auto" and has_fast_bfloat16(self.device)
        )
        self.phases = model.phases()
        self.batches_per_step = sum(phase.repeats for phase in self.phases if phase.needs_data)
        self.members = {phase.name: self._members(phase) for phase in self.phases}
        self.freezing = Freezing(model, training.transfer)
        self.frozen = self.freezing.at(0.0)
        self.optimizers = {
            phase.name: make_optimizer(self.members[phase.name], training, phase.lr_scale, self.freezing.scales)
            for phase in self.phases
        }
        self.compiled: dict[str, CompiledPhase] = {}
        self.modules = {phase.name: self._wrapped(phase) for phase in self.phases}
        self.state = TrainingState(model, training, self.holding, self.optimizers, rank)
        self.course = Course()
        self.timer = make_timer(self.device)
        self.guard = Guard(self.device, alone=world_size == 1, on_device=self.device.type != "cpu")
        self.micro_batch = MicroBatch(training.micro_batch, self.local_batch, rank, world_size, self.device)
        self.batches: Batches | None = None
        self.name_rows: NameRows | None = None
        """What users call the records of rows of the training split, where a failure is to name them."""

    def _members(self, phase: Phase) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.holding.own.items() if n.startswith(phase.parameters)}

    def _only(self, phase: Phase) -> None:
        """Let only the phase's parameters require gradients, without those that are frozen now."""
        if len(self.phases) > 1 or self.freezing.until:
            members = self.members[phase.name]
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in members and name not in self.frozen)

    def _thaw(self, progress: float) -> None:
        """Let parameters train whose time has come, at the same step on every rank."""
        frozen = self.freezing.at(progress)
        if frozen == self.frozen:
            return
        changed, self.frozen = self.frozen ^ frozen, frozen  # a rollback freezes again
        for phase in self.phases:
            if changed & self.members[phase.name].keys():
                # A wrapper waits for the gradients of those parameters that required them when it was made; the old
                # one must be gone, since the hooks that it left on the parameters go with it.
                del self.modules[phase.name]
                gc.collect()
                self.modules[phase.name] = self._wrapped(phase)

    def _wrapped(self, phase: Phase) -> nn.Module:
        if self.world_size > 1:
            self._only(phase)
        module = PhaseModule(self.model, phase.name)
        if not self.training.compile:
            return self.holding.wrapped(module)
        self.compiled[phase.name] = CompiledPhase(module, self.training.compile == "cuda_graphs")
        return self.holding.wrapped(self.compiled[phase.name])

    def _alone(self, phase: Phase) -> PhaseModule | None:
        """The phase as one rank can run it without the others, where it can."""
        return None if self.holding.sharded else PhaseModule(self.model, phase.name)

    def noticed(self, step: int) -> list[HealthWarning]:
        """What the steps up to `step` have met that is worth a warning, once each: phases that are not compiled."""
        failures = {name: module.failure for name, module in self.compiled.items() if module.failure}
        if not failures or NOT_COMPILED in self.course.warnings:
            return []
        message = "; ".join(f"phase '{name}': {failure}" for name, failure in failures.items())
        return [note(self.course, NOT_COMPILED, message, step)]

    def step(self, number: int, batches: Batches, progress: float) -> dict[str, Tensor]:
        """Run every phase of step `number` and return this rank's detached means.

        Raises: NonFiniteLossError, naming the records that are to blame, with the weights as they were before the step;
        on a GPU, where looking would stall the device, `check_finite` raises it at the next report, with the weights as
        they were before the step that failed. OutOfMemoryError, naming how many examples at once would fit.
        """
        means: dict[str, Tensor] = {}
        self._thaw(progress)
        share, self.batches = lr_share(self.training, number, progress), batches
        self.guard.begin(self._undone(progress))
        try:
            for phase, run in self.runs(number, batches, progress):
                self._only(phase)
                optimizer = self.optimizers[phase.name]
                for group in optimizer.param_groups:
                    group["lr"] = self.training.lr * phase.lr_scale * group["scale"] * share * self.course.lr_factor
                output = self._gradients_of(phase, run)
                if self.world_size > 1:
                    with self.timer.part("communication", phase.name):
                        self.holding.settle_gradients(self.members[phase.name])
                with self.timer.part("optimiser", phase.name):
                    norm = self._gradient_norm(phase, number)
                    gradients = [p.grad for p in self.members[phase.name].values() if p.grad is not None]
                    self.guard.admit(run, output.loss, gradients, next(iter(norm.values()), None))
                    self.guard.take_step(optimizer)
                if output.carry is not None:
                    self.state.carry = output.carry
                means |= norm
                means.update(output.means)
        except NotFiniteError as failure:
            raise self._explained(failure) from None
        with self.timer.part("optimiser"):
            self._update_average(number)
        return means

    def runs(self, number: int, batches: Batches, progress: float) -> Iterator[tuple[Phase, Run]]:
        """The runs of the phases of step `number`, in order; each is made when the one before was taken."""
        taken = number * self.batches_per_step
        for place, phase in enumerate(self.phases):
            if not self.model.takes(phase.name, progress):
                taken += phase.repeats if phase.needs_data else 0
                continue
            for repeat in range(phase.repeats):
                batch, read = None, None
                if phase.needs_data:
                    batch, read, taken = batches.batch(taken), taken, taken + 1
                yield (
                    phase,
                    Run(
                        phase.name,
                        number,
                        read,
                        batch,
                        self.local_batch,
                        derive_seed(self.seed, "noise", number, place, repeat),
                        self.rank,
                        self.world_size,
                        progress,
                        self.state.carry,
                        self.device,
                        self.half,
                    ),
                )

    def find_micro_batch(self, number: int, batches: Batches, progress: float) -> None:
        """With `micro_batch: auto`, find how many examples at once fit in step `number`, which is not taken; a
        collective. Raises: OutOfMemoryError."""
        if not self.micro_batch.auto:
            return
        self._thaw(progress)
        firsts = dict(reversed(list(self.runs(number, batches, progress))))

        def tries() -> Iterator[tuple[Run, nn.Module]]:
            for phase in self.phases:
                if phase in firsts:
                    self._only(phase)
                    yield firsts[phase], PhaseModule(self.model, phase.name)

        self.micro_batch.find(tries(), bytes_to_come(self.optimizers.values(), self._undone(progress)))

    def _undone(self, progress: float) -> list[torch.optim.Optimizer]:
        """The optimisers that have stepped before the last run of a step."""
        taken = [phase for phase in self.phases if self.model.takes(phase.name, progress)]
        return [self.optimizers[phase.name] for phase in taken if phase.repeats > 1 or phase is not taken[-1]]

    def _gradients_of(self, phase: Phase, run: Run) -> Output:
        """Leave the gradients of a run, of all its examples at once or of one micro-batch after the other."""
        while True:
            try:
                return self._pass(phase, run)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                taken, lasting = f"{in_use(self.device)} ({in_short(error)})", LASTING in str(error)
            # After the handler, whose traceback holds what the pass had allocated.
            self.micro_batch.lower(run, self._alone(phase), taken, lasting)

    def _pass(self, phase: Phase, run: Run) -> Output:
        module, optimizer = self.modules[phase.name], self.optimizers[phase.name]
        spoilt = self._spoilt(phase, run)
        if self.micro_batch.size == run.batch_size:
            with self.timer.part("forward", run.phase):
                output = run.forward(module)
            seed = self.guard.seed(output.loss, 1.0, run, spoilt)
            optimizer.zero_grad(set_to_none=True)
            self._backward(output.loss, seed, run.phase)
            return output
        optimizer.zero_grad(set_to_none=True)
        joined = Joined(run.batch_size, self.device)
        parts = cut(run.batch_size, self.micro_batch.size, self.device)
        for part, rows in enumerate(parts):
            with unsynchronised(module, last=part == len(parts) - 1):
                with self.timer.part("forward", run.phase):
                    output = run.forward(module, rows)
                seed = self.guard.seed(output.loss, len(rows) / run.batch_size, run, spoilt)
                self._backward(output.loss, seed, run.phase)
            if part == 0 and self.world_size == 1 and self.training.compile == "cuda_graphs":
                # The next part's graph writes its gradients to the same memory.
                for parameter in self.members[phase.name].values():
                    parameter.grad = None if parameter.grad is None else parameter.grad.clone()
            joined.add(output, rows)
        return joined.output

    def _spoilt(self, phase: Phase, run: Run) -> bool:
        """Whether numbers of this rank's batch that are not finite get into its own gradients, which then are all
        looked at; False where the norm of all gradients tells it anyway."""
        if self._takes_norm(run.step) or not self.guard.doubts(run):
            return False
        module = PhaseModule(self.model, phase.name)
        parts = cut(run.batch_size, self.micro_batch.size, self.device)
        return any(look(run, module, rows)[1] for rows in parts)

    def _backward(self, loss: Tensor, seed: Tensor | None, phase: str) -> None:
        with self.timer.part("backward", phase):
            if self.world_size > 1:
                self.timer.watch(loss)
            loss.backward(seed)

    def _gradient_norm(self, phase: Phase, number: int) -> dict[str, Tensor]:
        """The norm of the phase's gradients before clipping, which it does; without clipping only now and then."""
        name = f"health/{phase.name}_gradient_norm"
        members = self.members[phase.name]
        if self.training.clip_norm is not None:
            return {
                name: self.holding.clip([n for n, p in members.items() if p.grad is not None], self.training.clip_norm)
            }
        if not self._takes_norm(number):
            return {}
        return {name: self.holding.norm({n: p.grad for n, p in members.items() if p.grad is not None})}

    def _takes_norm(self, number: int) -> bool:
        # Of its shards alone no rank sees whether all are finite.
        return self.training.clip_norm is not None or self.holding.sharded or number % NORM_EVERY == 0

    def _explained(self, failure: NotFiniteError) -> NonFiniteLossError:
        """The error for users; the weights are then as they were before the step that failed."""
        phase = next(phase for phase in self.phases if phase.name == failure.run.phase)
        self._only(phase)
        error = explain(failure, self._alone(phase), self.micro_batch.size, self.name_rows)
        self.guard.go_back()
        return error

    @torch.no_grad()
    def weight_norms(self) -> dict[str, Tensor]:
        """The norm of each phase's weights, under `health/PHASE_weight_norm`."""
        return {
            f"health/{phase}_weight_norm": self.holding.norm({name: p.detach() for name, p in members.items()})
            for phase, members in self.members.items()
        }

    def check_finite(self, means: dict[str, float], number: int) -> None:
        """Raises: NonFiniteLossError when the device found a bad run since the last check, or a reported mean is not
        finite."""
        run = self.guard.look()
        if run is not None:
            if run.batch_number is not None and self.batches is not None:
                run = replace(run, batch=self.batches.batch(run.batch_number))
            raise self._explained(NotFiniteError(run))
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"{name} is {value} at or before step {number} (rank {self.rank}); lower training.lr or set "
                    "training.clip_norm"
                )

    @torch.no_grad()
    def _update_average(self, number: int) -> None:
        if not self.state.average:
            return
        # The average of a short history must not be the initialisation (Kingma and Ba 2015, section 3, in effect).
        decay = min(self.training.ema_decay, (1 + number) / (10 + number))
        own = self.holding.own
        self.guard.average(list(self.state.average.values()), [own[n] for n in self.state.average], 1 - decay)

    def load(
        self,
        weights: dict[str, Tensor],
        average: dict[str, Tensor],
        optimizer_tensors: dict[str, Tensor],
        carry: tuple[Tensor, ...],
    ) -> None:
        """Take up a saved state, of any number of workers."""
        self.guard.reset()
        self.state.load(weights, average, optimizer_tensors, carry)
