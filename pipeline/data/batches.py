"""Batches in a global order that is a function of (seed, position) alone, not of the number of workers.

Runs in every training worker. The k-th global batch is computed, not iterated to: nothing but k has to be
saved, a run resumes anywhere, and worker r of W takes rows r, r + W, … of it. The split sits in memory as one
tensor, on the device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.data.prepared import SplitArrays
from pipeline.errors import PreparedDataError
from pipeline.models.base import Batch, make_generator


class Batches(Protocol):
    """What the loop reads from: any global batch, by number."""

    def batch(self, number: int) -> Batch:
        """This rank's slice of the `number`-th global batch, on the device."""


class ShuffledBatches:
    """Examples in a fresh permutation every epoch; batches run on from one epoch into the next.

    The endless sequence of permutations is cut into batches of exactly `batch_size`, so that every example is
    seen once an epoch, none is dropped, and all workers take equally many steps.
    """

    def __init__(
        self,
        arrays: SplitArrays,
        layout: Layout,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout, self.batch_size, self.seed = layout, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.x, self.label = arrays.x.to(device), arrays.label.to(device)
        self.count = len(self.x)
        if self.count == 0:
            raise PreparedDataError(
                "the training split is empty; give data.split a smaller share of validation and test"
            )
        self._permutations: dict[int, Tensor] = {}

    def rows(self, number: int) -> Tensor:
        """The rows of the `number`-th global batch, int64 `[batch_size]`."""
        start = number * self.batch_size
        parts: list[Tensor] = []
        while start < (number + 1) * self.batch_size:
            epoch, offset = divmod(start, self.count)
            taken = min(self.count - offset, (number + 1) * self.batch_size - start)
            parts.append(self._permutation(epoch)[offset : offset + taken])
            start += taken
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            generator = make_generator(self.seed, "order", epoch)
            # A batch spans few epochs; those behind are not needed again.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.count, generator=generator)
        return self._permutations[epoch]

    def batch(self, number: int) -> Batch:
        index = self.rows(number)[self.rank :: self.world_size].to(self.x.device)
        return Batch(self.layout.to_model(self.x[index]), self.label[index], index)


class LaneBatches:
    """Continuous text in `batch_size` lanes, each reading the whole stream from its own place, round and round.

    Lane i starts at i / batch_size of the stream and moves on by one window a step, so a recurrent state may be
    carried from step to step; after one pass of all lanes over their stretch every token was seen once.
    """

    def __init__(
        self,
        arrays: SplitArrays,
        layout: Layout,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.length = layout.length
        self.stream = torch.cat([arrays.x.flatten(), arrays.tail.flatten().to(arrays.x.dtype)]).to(device)
        tokens = len(self.stream)
        if tokens < self.length + 1:
            raise PreparedDataError(
                f"the training text has {tokens} tokens and a window is {self.length}; lower data.codec.length"
            )
        lanes = torch.arange(batch_size, device=device)[rank::world_size]
        self.starts = lanes * tokens // batch_size
        self.within = torch.arange(self.length + 1, device=device)
        self.unlabelled = torch.full((len(lanes),), -1, device=device)

    def batch(self, number: int) -> Batch:
        starts = self.starts + number * self.length
        positions = (starts.unsqueeze(1) + self.within) % len(self.stream)
        return Batch(self.stream[positions].long(), self.unlabelled, (starts % len(self.stream)) // self.length)


def make_batches(
    arrays: SplitArrays,
    layout: Layout,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Batches:
    """Lanes for continuous text, shuffled examples for everything else. `batch_size` is the global one."""
    if layout.continuous:
        return LaneBatches(arrays, layout, batch_size, rank, world_size, device)
    return ShuffledBatches(arrays, layout, batch_size, seed, rank, world_size, device)
