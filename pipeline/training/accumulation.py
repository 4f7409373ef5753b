"""One run of a phase, in one pass or in micro-batches whose gradients add up to those of one pass.

Plain PyTorch, in every training worker. A micro-batch has every k-th example of this rank's batch, with the noise and
the carried state that these examples have in one pass, so that what it is cut into changes nothing but the rounding of
sums. That holds because every family's loss is a mean over examples (see `Output`); parts of unequal size are weighted
by it. Noise is drawn for the whole batch every time and then cut: a draw takes its memory whatever the micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models.base import Batch, Noise, Output, StepContext


@dataclass(frozen=True)
class Run:
    """All that the gradients of one run of a phase depend on, beside the weights: taken again, they come out again.

    `batch` is the `batch_number`-th of the training, both None in a phase without data; `batch_size` is this rank's;
    `seed` that of the run's noise; `half` whether networks compute with bfloat16.
    """

    phase: str
    step: int
    batch_number: int | None
    batch: Batch | None
    batch_size: int
    seed: int
    rank: int
    world_size: int
    progress: float
    carry: tuple[Tensor, ...] | None
    device: torch.device
    half: bool

    def forward(self, module: nn.Module, rows: Tensor | None = None) -> Output:
        """The output for all examples, or for those at the places `rows` int64 `[R]` of this rank's batch, which then
        are what they are in one pass of all."""
        noise = Noise(torch.Generator(device=self.device).manual_seed(self.seed), self.rank, self.world_size)
        batch, carry, size = self.batch, self.carry, self.batch_size
        if rows is not None:
            noise, size = noise.of(rows, size), len(rows)
            batch = None if batch is None else batch.of(rows)
            carry = None if carry is None else tuple(part.index_select(0, rows) for part in carry)
        with self._precision():
            output: Output = module(batch, StepContext(noise, size, self.progress, carry))
        return output

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Half as many bits where they are asked for; an autocast that does nothing takes its time all the same."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()


def cut(batch_size: int, micro_batch: int, device: torch.device) -> list[Tensor]:
    """The places, int64, of each micro-batch's examples: as few parts of up to `micro_batch` as there can be, their
    sizes equal or one apart, the larger ones first."""
    count = -(-batch_size // micro_batch)
    return [torch.arange(part, batch_size, count, device=device) for part in range(count)]


@contextlib.contextmanager
def unsynchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Ranks keep to themselves the gradients of a pass of `module` that begins here; with the `last` pass of a run
    they share the sum of all."""
    if last or not isinstance(module, DistributedDataParallel):
        yield
        return
    with module.no_sync():
        yield


class Joined:
    """What the micro-batches of a run give, put together: its loss and means, weighted by size, and the carried state
    by lane."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        self.output = Output(torch.zeros((), device=device))

    def add(self, output: Output, rows: Tensor) -> None:
        whole, share = self.output, len(rows) / self.batch_size
        whole.loss = whole.loss + share * output.loss.detach()
        for name, value in output.means.items():
            whole.means[name] = whole.means[name] + share * value if name in whole.means else share * value
        if output.carry is not None:
            if whole.carry is None:
                whole.carry = tuple(part.new_zeros(self.batch_size, *part.shape[1:]) for part in output.carry)
            for lanes, part in zip(whole.carry, output.carry, strict=True):
                lanes.index_copy_(0, rows, part)
