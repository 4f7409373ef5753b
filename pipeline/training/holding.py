"""How a rank holds the parameters that it trains: all of each, here, or shards of them (`sharding.py`).
Where all ranks are CPUs of one machine, `shared_memory.py` averages their gradients.

Plain PyTorch, in every training worker. The stepper goes through this wherever a parameter, or what belongs to one (its
gradient, its moving average, its optimiser's state), is not simply a tensor of the parameter's own shape: so that
what is saved is the same, and loads, however it is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models.base import Batch, GenerativeModel, Output, StepContext
from pipeline.spec import TrainingSpec


class PhaseModule(nn.Module):
    """One phase of a model as a module of its own: what DistributedDataParallel wraps.

    Wrapped while only the phase's parameters require gradients, each wrapper reduces just those. One wrapper
    over the whole model would need `find_unused_parameters`, a search of the graph in every step.
    """

    def __init__(self, model: GenerativeModel, phase: str) -> None:
        super().__init__()
        self.model, self.phase = model, phase

    def forward(self, batch: Batch | None, context: StepContext) -> Output:
        output: Output = self.model(batch, self.phase, context)
        return output


class Holding:
    """Every rank holds all of every parameter; with several ranks DistributedDataParallel averages the gradients.

    `own` are the parameters by name as this rank's optimisers see them. Tensors by a parameter's name are what this
    rank holds of it or of something that belongs to it.
    """

    def __init__(
        self, model: GenerativeModel, device: torch.device, world_size: int, channels_last: bool = False
    ) -> None:
        self.model, self.device, self.world_size = model.to(device), device, world_size
        if channels_last:
            # The weights are enough: a convolution brings what it is given into the order that these have.
            for parameter in model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.own: dict[str, nn.Parameter] = dict(model.named_parameters())

    @property
    def sharded(self) -> bool:
        return False

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take up whole weights and buffers."""
        self.model.load_state_dict(weights)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The phase as the stepper calls it, made while only its parameters require gradients."""
        if self.world_size == 1:
            return module
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        # Buffers change by validations alone, on all ranks alike: none is sent. The bucket view saves a copy of the
        # gradients.
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def settle_gradients(self, names: Iterable[str]) -> None:
        """After a phase's last backward: `own` has the gradients of these, the mean over all ranks. Here it has
        already."""

    def norm(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The Euclidean norm of all of them together, each one whole."""
        if not tensors:  # all that a phase trains is frozen
            return torch.zeros((), device=self.device)
        return nn.utils.get_total_norm(list(tensors.values()))

    def clip(self, names: list[str], most: float) -> Tensor:
        """Scale the gradients down to a norm of `most` together; their norm before."""
        if not names:
            return torch.zeros((), device=self.device)
        return nn.utils.clip_grad_norm_([self.own[name] for name in names], most)

    def whole(self, name: str, value: Tensor) -> Tensor:
        """All of what `value` is this rank's part of (a collective where it is one)."""
        return value

    def part(self, name: str, value: Tensor) -> Tensor:
        """This rank's part of a whole `value`, on the device and laid out in memory as the parameter is: kernels that
        go through both as one stretch of memory rely on it."""
        return torch.empty_like(self.own[name], dtype=value.dtype, requires_grad=False).copy_(value)

    @contextlib.contextmanager
    def scoring(self, average: Mapping[str, Tensor]) -> Iterator[GenerativeModel]:
        """The model in evaluation mode, with the averages in place of the parameters that have one."""
        kept = {name: self.own[name].detach().clone() for name in average}
        try:
            with torch.no_grad():
                for name, value in average.items():
                    self.own[name].copy_(value)
            self.model.eval()
            yield self.model
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.own[name].copy_(value)
            self.model.train()


def gains_channels_last(model: nn.Module, device: torch.device) -> bool:
    """On a GPU, whose kernels for convolutions compute that way; but its norms of groups bring all back and forth."""
    modules = list(model.modules())
    convolves = any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in modules)
    return device.type == "cuda" and convolves and not any(isinstance(module, nn.GroupNorm) for module in modules)


def make_holding(model: GenerativeModel, training: TrainingSpec, device: torch.device, world_size: int) -> Holding:
    """As `training.sharding` says; a single rank holds everything. A collective, where there are several."""
    if training.sharding == "none" or world_size == 1:
        last = training.channels_last
        if last == "auto":
            # Compiled code orders the channels by itself, and of pictures with one channel takes ours for another.
            last = not training.compile and gains_channels_last(model, device)
        alike = len({parameter.dtype for parameter in model.parameters()}) == 1
        if world_size > 1 and device.type == "cpu" and alike:
            from pipeline.training.shared_memory import SharedHolding, find_peers  # they import this module

            if (peers := find_peers()) is not None:
                return SharedHolding(model, device, world_size, last, peers)
        return Holding(model, device, world_size, last)
    from pipeline.training.sharding import ShardedHolding  # 0.5 s, for those who want it

    return ShardedHolding(model, device, world_size)
