"""The tensors that a training changes, each whole, and the way back to them: what a checkpoint keeps, and a bundle.

Plain PyTorch, in every training worker. However parameters are held, what is taken from here is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.models.base import GenerativeModel
from pipeline.spec import TrainingSpec
from pipeline.training.holding import Holding


class TrainingState:
    """A model's weights, their moving average, the tensors of its optimisers, the carried state of this rank's lanes,
    and the weights of the best validation, where they are kept."""

    def __init__(
        self,
        model: GenerativeModel,
        training: TrainingSpec,
        holding: Holding,
        optimizers: Mapping[str, torch.optim.Optimizer],
        rank: int,
    ) -> None:
        self.model, self.holding, self.optimizers, self.rank = model, holding, optimizers, rank
        self.numbered = {phase: self._names(optimizer) for phase, optimizer in optimizers.items()}
        own = holding.own if training.ema_decay > 0 else {}
        self.average = {n: p.detach().clone() for n, p in own.items() if n.startswith(model.averaged)}
        self.carry: tuple[Tensor, ...] | None = None
        self.best: dict[str, Tensor] = {}
        self._keeps = True
        self._gathered: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] | None = None

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """The parameters' names in the order in which the optimiser numbers them."""
        names = {parameter: name for name, parameter in self.holding.own.items()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """While rank 0 alone asks for the state, as for a checkpoint: a collective that has it whole there. The others
        of its machine let go of each tensor at once: the host's memory holds the state once, not once a rank."""
        if self.holding.sharded:
            self._keeps = self.rank == 0
            try:
                state = self.weights(), self.averages(), self.optimizer_tensors()
            finally:
                self._keeps = True
            self._gathered = state if self.rank == 0 else None
        try:
            yield
        finally:
            self._gathered = None

    def _whole(self, name: str, value: Tensor) -> Tensor:
        whole = self.holding.whole(name, value)
        return whole if self._keeps else whole.new_empty(0)

    def weights(self) -> dict[str, Tensor]:
        """All weights and buffers, each whole: a collective where they are in shards, as are the next four."""
        if self._gathered is not None:
            return self._gathered[0]
        own, state = self.holding.own, self.model.state_dict()
        return {n: self._whole(n, own[n].detach()) if n in own else value.detach() for n, value in state.items()}

    def averages(self) -> dict[str, Tensor]:
        """The moving averages, each whole."""
        if self._gathered is not None:
            return self._gathered[1]
        return {name: self._whole(name, value) for name, value in self.average.items()}

    def scoring_weights(self) -> dict[str, Tensor]:
        """The weights that scores and samples use: averaged where there is an average."""
        return {**self.weights(), **self.averages()}

    def bundled_weights(self) -> dict[str, Tensor]:
        """The weights that a bundle gets: those of the best validation where they are kept, else those for scores."""
        return self.best or self.scoring_weights()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Every tensor of every optimiser, whole, under `phase/parameter number/name`."""
        if self._gathered is not None:
            return self._gathered[2]
        return {
            f"{phase}/{number}/{name}": self._whole(self.numbered[phase][number], value) if value.dim() else value
            for phase, optimizer in self.optimizers.items()
            for number, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def global_carry(self) -> tuple[Tensor, ...]:
        """The carried state of all lanes `[batch_size, layers, hidden]`, gathered from all ranks (a collective)."""
        if self.carry is None:
            return ()
        if self.holding.world_size == 1:
            return self.carry
        gathered: list[Tensor] = []
        for part in self.carry:
            parts = [torch.empty_like(part) for _ in range(self.holding.world_size)]
            dist.all_gather(parts, part.contiguous())
            gathered.append(torch.stack(parts, dim=1).flatten(0, 1))  # lane i belongs to rank i % W
        return tuple(gathered)

    def load(
        self,
        weights: dict[str, Tensor],
        average: dict[str, Tensor],
        optimizer_tensors: dict[str, Tensor],
        carry: tuple[Tensor, ...],
    ) -> None:
        """Take up a saved state, of any number of workers."""
        part = self.holding.part
        self.holding.load(weights)
        self.average = {name: part(name, average[name]) for name in self.average}
        for phase, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in optimizer_tensors.items():
                owner, number, name = key.split("/")
                if owner == phase:
                    parameter = self.numbered[phase][int(number)]
                    state.setdefault(int(number), {})[name] = part(parameter, value) if value.dim() else value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        if carry:
            self.carry = tuple(
                part[self.rank :: self.holding.world_size].to(self.holding.device).contiguous() for part in carry
            )

    def averaged_weights(self) -> contextlib.AbstractContextManager[GenerativeModel]:
        """The model in evaluation mode with the averaged weights (where there are any) in place."""
        return self.holding.scoring(self.average)

    def keep_as_best(self) -> None:
        """Keep a copy of the weights for scores, in the host's memory, as those of the best validation."""
        self.best = copied(self.scoring_weights())


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
