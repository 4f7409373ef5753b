"""Parameters in shards: each rank holds, steps and averages its rows of every parameter (FSDP; Zhao et al. 2023).

Plain PyTorch, in every training worker where `training.sharding` is 'fsdp' and there are several. A block's parameters
are put together from all ranks while it computes, and let go again; gradients are averaged and handed out in shards.
So a device holds 1 / W of the weights, of their average and of the optimisers' state, and the whole of no more than a
block or two. The optimisers see the shards as plain tensors, so that their fused kernels work as always.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pipeline.models.base import Batch, GenerativeModel, Output, StepContext
from pipeline.models.recurrence import put_in_shards
from pipeline.models.residual import ResidualBlock
from pipeline.training.holding import Holding, PhaseModule

BLOCKS = (ResidualBlock, nn.LSTM, nn.GRU, nn.Linear)
"""Modules that are put together by themselves, where they are large; all of them are used by calling them alone."""
LEAST_PARAMETERS = 1_000_000
"""Of a block that is put together by itself: smaller ones go with the rest, since each costs two messages a pass."""


class _Root(nn.Module):
    """A model whose forward pass gives a plain tuple: hooks are put on tensors that they find in what it gives."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch | None, phase: str, context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...] | None]:
        output: Output = self.model(batch, phase, context)
        return output.loss, output.means, output.carry


class _ShardedPhase(nn.Module):
    def __init__(self, root: _Root, phase: str) -> None:
        super().__init__()
        self.root, self.phase = root, phase

    def forward(self, batch: Batch | None, context: StepContext) -> Output:
        return Output(*self.root(batch, self.phase, context))


class ShardedHolding(Holding):
    """Every rank holds its rows of every parameter; numbers that have no rows are held, and averaged, by all."""

    def __init__(self, model: GenerativeModel, device: torch.device, world_size: int) -> None:
        self.model, self.device, self.world_size = model, device, world_size
        # For scores and samples, which call other methods than the forward pass: filled in while it is used, and in
        # the host's memory otherwise.
        self.twin = copy.deepcopy(model).eval().requires_grad_(False)
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # else the mesh would take the one of its own counting
        for module in model.modules():
            if isinstance(module, nn.LSTM | nn.GRU):
                put_in_shards(module)
        mesh = init_device_mesh(device.type, (world_size,))
        numbers = {parameter for parameter in model.parameters() if parameter.dim() == 0}
        for parameter in numbers:
            parameter.data = parameter.data.to(device)
        for block in () if model.differentiates_within else _blocks(model):
            # A block that was let go would not be there any more for the second derivative.
            fully_shard(block, mesh=mesh, ignored_params=numbers)
        self.root = _Root(model)
        fully_shard(self.root, mesh=mesh, ignored_params=numbers)
        self.spread = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
        self.own = {
            name: nn.Parameter(p.to_local().detach()) if isinstance(p, DTensor) else p
            for name, p in model.named_parameters()
        }

    @property
    def sharded(self) -> bool:
        return True

    def load(self, weights: Mapping[str, Tensor]) -> None:
        parts = {name: self._spread(name, self.part(name, weights[name])) for name in self.spread if name in weights}
        self.model.load_state_dict({**weights, **parts})

    def wrapped(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, PhaseModule), "the spec compiles no shards"
        return _ShardedPhase(self.root, module.phase)

    @torch.no_grad()
    def settle_gradients(self, names: Iterable[str]) -> None:
        for name in names:
            parameter = self.spread.get(name, self.own[name])
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                self.own[name].grad, parameter.grad = gradient.to_local(), None
            elif gradient is not None:
                dist.all_reduce(gradient)
                gradient /= self.world_size

    @torch.no_grad()
    def norm(self, tensors: Mapping[str, Tensor]) -> Tensor:
        squared = self._squared([t for name, t in tensors.items() if name in self.spread])
        dist.all_reduce(squared)
        return (squared + self._squared([t for name, t in tensors.items() if name not in self.spread])).sqrt()

    def _squared(self, tensors: list[Tensor]) -> Tensor:
        """A sum over them all; in double precision, so that it is the same however they are cut."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for square in torch._foreach_norm(tensors, 2.0, torch.float64) if tensors else ():
            total += square.square()
        return total

    def clip(self, names: list[str], most: float) -> Tensor:
        gradients = {name: g for name in names if (g := self.own[name].grad) is not None}
        norm = self.norm(gradients)
        for gradient in gradients.values():
            gradient *= (most / (norm + 1e-6)).clamp(max=1.0).to(gradient.dtype)
        return norm

    def whole(self, name: str, value: Tensor) -> Tensor:
        """In the host's memory, one at a time: the device need not hold the whole model."""
        return self._spread(name, value).full_tensor().cpu() if name in self.spread else value

    def _spread(self, name: str, value: Tensor) -> DTensor:
        """This rank's part as a part of the whole."""
        of = self.spread[name]
        return DTensor.from_local(
            value, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
        )

    def part(self, name: str, value: Tensor) -> Tensor:
        own = self.own[name]
        if name in self.spread:
            size = -(-len(value) // self.world_size)
            value = value[size * dist.get_rank() :][: len(own)]
        return torch.empty_like(own, dtype=value.dtype, requires_grad=False).copy_(value)

    @contextlib.contextmanager
    def scoring(self, average: Mapping[str, Tensor]) -> Iterator[GenerativeModel]:
        """A whole copy on every rank's device: scores and samples need no gradients and no optimiser."""
        state = dict(self.twin.named_buffers())
        with torch.no_grad():
            for name, own in self.own.items():
                self.twin.get_parameter(name).copy_(self.whole(name, average.get(name, own.detach())))
            for name, buffer in self.model.named_buffers():
                state[name].copy_(buffer)
        try:
            yield self.twin.to(self.device)
        finally:
            self.twin.to("cpu")


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are large enough to be put together by themselves."""
    for child in model.children():
        if isinstance(child, BLOCKS) and sum(p.numel() for p in child.parameters()) >= LEAST_PARAMETERS:
            yield child
        else:
            yield from _blocks(child)
