"""The guard of the weights: no update goes through whose loss or gradients are not finite.

Plain PyTorch, in every training worker. On a CPU the batch, the loss and the vectors among the gradients are looked at
in every run of a phase; all gradients would cost an autoencoder 3% of its speed. On a GPU looking would stall the
device, so it decides itself: from the first bad run on, optimisers skip what a flag tells them to, and `look` asks at
the next report which run it was. What one rank alone can see, its batch and its loss, it sends back as gradients that
are not finite, so that all ranks know it once these are reduced: whoever decided by its own would leave the others
waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.training.accumulation import Run


@dataclass
class NotFiniteError(Exception):
    """What the guard found in `run`; `loss` and `gradient` are this rank's loss and the sum of all ranks' gradients,
    None where it did not come to that."""

    run: Run
    loss: float | None = None
    gradient: float | None = None


class Undo:
    """The weights and states of some optimisers as they were before a step, to go back to within it."""

    def __init__(self) -> None:
        # By optimiser: which of them step twice, and so are kept, may change in the course of a training.
        self.kept: dict[Optimizer, dict[tuple[int, str], Tensor]] = {}

    def keep(self, optimizers: Sequence[Optimizer], bad: Tensor | None = None) -> None:
        """Remember what is now or, where the device says `bad`, what was remembered."""
        for optimizer in optimizers:
            kept, values = self.kept.setdefault(optimizer, {}), _tensors(optimizer)
            for key in kept.keys() - values.keys():
                del kept[key]
            known = [key for key in values if key in kept]
            before, after = [kept[key] for key in known], [values[key] for key in known]
            if known and bad is None:
                torch._foreach_copy_(before, after)
            elif known and bad is not None:
                # All are finite, so that these products and sums are exact.
                after = list(torch._foreach_mul(after, 1 - bad))
                torch._foreach_mul_(before, bad)
                torch._foreach_add_(before, after)
            for key in values.keys() - kept.keys():
                kept[key] = values[key].clone()

    @torch.no_grad()
    def restore(self, optimizers: Sequence[Optimizer]) -> None:
        """Bring the optimisers that were given to `keep` back to then."""
        for optimizer in optimizers:
            kept, now = self.kept[optimizer], _tensors(optimizer)
            for key, value in kept.items():
                now[key].copy_(value)
            places = _parameters(optimizer)
            for place in {place for place, _ in now.keys() - kept.keys()}:
                del optimizer.state[places[place]]  # it took its first step since


class Guard:
    """The guard of one rank; `on_device` lets the device decide, `alone` says that there are no other ranks."""

    def __init__(self, device: torch.device, alone: bool, on_device: bool) -> None:
        self.alone, self.on_device = alone, on_device
        self.undo = Undo()
        self.undone: Sequence[Optimizer] = ()
        self.bad = torch.zeros((), dtype=torch.float32, device=device)
        self.first = torch.zeros((), dtype=torch.int64, device=device)
        self.runs: list[tuple[Run, Sequence[Optimizer], bool]] = []
        """Since the last look, without batch and carried state; the optimisers to undo; whether there was a state."""
        self.carry: tuple[Tensor, ...] = ()
        """The state that the first bad run was given or, where none is bad, the last run that was given one."""

    def reset(self) -> None:
        """Everything is finite again."""
        self.bad.zero_()
        self.runs, self.carry = [], ()

    def begin(self, undone: Sequence[Optimizer]) -> None:
        """A step begins in which `undone` step before its last run."""
        self.undone = undone
        if undone:
            self.undo.keep(undone, self.bad if self.on_device else None)

    def go_back(self) -> None:
        """Back to before the step in which the first bad run was."""
        if self.undone:
            self.undo.restore(self.undone)

    def doubts(self, run: Run) -> bool:
        """Whether the batch of a run has numbers that are not finite, which need not show in the gradients of vectors.
        The phase may not read them: that is to be seen from all gradients. False where the device decides by these."""
        if self.on_device or run.batch is None or not run.batch.x.is_floating_point():
            return False
        value = float(run.batch.x.sum())
        return value - value != 0.0

    def seed(self, loss: Tensor, share: float, run: Run, spoilt: bool = False) -> Tensor | None:
        """What the backward pass of `loss` begins with: the `share` of its examples in those of the run, or NaN where
        it is not finite or this rank's batch has `spoilt` the gradients; None for a share of 1.

        Raises: NotFiniteError instead of giving NaN, where no other rank waits for this one's gradients.
        """
        if self.on_device:
            return loss.detach() * 0 + share
        value = float(loss.detach())
        if value - value == 0.0 and not spoilt:
            return None if share == 1.0 else torch.full_like(loss, share)
        if self.alone:
            raise NotFiniteError(run, loss=value)
        return torch.full_like(loss, torch.nan)

    def admit(self, run: Run, loss: Tensor, gradients: Sequence[Tensor], norm: Tensor | None) -> None:
        """Look at the gradients of a run, or at their `norm` where it is known.

        Raises: NotFiniteError when they are not finite, on all ranks; not where the device decides.
        """
        if not gradients:
            return  # all that the phase trains is frozen
        if not self.on_device:
            value = float(_total(gradients) if norm is None else norm)
            if value - value != 0.0:
                raise NotFiniteError(run, float(loss.detach()), value)
            return
        if norm is not None:
            found = (norm.detach() * 0 != 0).to(self.bad.dtype)
        else:
            found = torch.zeros_like(self.bad)
            torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), found, torch.ones_like(self.bad))
        self.first = torch.where(self.bad > 0, self.first, len(self.runs))
        if run.carry is not None:
            self._keep(run.carry)
        self.bad.copy_(torch.maximum(self.bad, found))
        # Without what would keep memory of the device: its batch can be read again.
        self.runs.append((replace(run, batch=None, carry=None), self.undone, run.carry is not None))

    def _keep(self, carry: tuple[Tensor, ...]) -> None:
        """Remember the carried state of a run unless one before it was bad."""
        if not self.carry:
            self.carry = tuple(part.detach().clone() for part in carry)
            return
        for kept, part in zip(self.carry, carry, strict=True):
            torch.where(self.bad > 0, kept, part.detach(), out=kept)

    def take_step(self, optimizer: Optimizer) -> None:
        """Let the optimiser step, unless the device says that something is bad."""
        if not self.on_device:
            optimizer.step()
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.bad  # type: ignore[attr-defined]
            optimizer.step()
        else:
            before = {key: value.clone() for key, value in _tensors(optimizer).items()}
            optimizer.step()
            with torch.no_grad():
                for key, value in _tensors(optimizer).items():
                    if key in before:
                        value.copy_(torch.where(self.bad > 0, before[key], value))

    def average(self, averages: list[Tensor], parameters: list[Tensor], weight: float) -> None:
        """Move the averages towards the parameters by `weight`, unless the device says that something is bad."""
        if not self.on_device:
            torch._foreach_lerp_(averages, parameters, weight)
            return
        way = torch._foreach_sub(parameters, averages)
        torch._foreach_mul_(way, weight * (1 - self.bad))
        torch._foreach_add_(averages, way)

    def look(self) -> Run | None:
        """The first bad run since the last look, without its batch: the one moment at which the device is waited for.

        The weights are then what they were before that run.
        """
        runs, self.runs = self.runs, []
        if not self.on_device or not runs or not bool(self.bad):
            return None
        run, self.undone, carries = runs[int(self.first)]
        return replace(run, carry=self.carry) if carries else run


def _total(gradients: Sequence[Tensor]) -> Tensor:
    """A sum that is finite if all gradients are, for a fraction of what reading all of them costs.

    Of vectors (biases, gains): what flows back through a layer goes whole into the gradient of its bias, and that of
    its matrix is this times what the layer had read, which is the batch (see `Guard.doubts`), or what made a loss of
    it.
    """
    looked_at = [gradient for gradient in gradients if gradient.dim() <= 1] or list(gradients)
    return torch.stack([values.sum() for values in looked_at]).sum()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """The weights of an optimiser, under their place, and what it keeps of each, under its name."""
    found: dict[tuple[int, str], Tensor] = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        found[place, ""] = parameter.detach()
        for name, value in optimizer.state.get(parameter, {}).items():
            # A count of steps may lie in the host's memory; those that do are not part of any formula.
            if isinstance(value, Tensor) and value.device == parameter.device:
                found[place, name] = value
    return found
