"""Batches in a global order that is a function of (seed, position) alone, not of the number of workers.

Runs in every training worker. The k-th global batch is computed, not iterated to: nothing but k has to be
saved, a run resumes anywhere, and worker r of W takes rows r, r + W, … of it. Here the split sits in memory as one
tensor; `streaming` gives the same batches from shards, and `feed` chooses.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.prepared import SplitArrays
from pipeline.errors import PreparedDataError
from pipeline.models.base import Batch

DEVICE_SHARE = 0.25
"""Of the memory that is free on a GPU when training begins, what a split may take to lie there."""


class Batches(Protocol):
    """What the loop reads from: any global batch, by number."""

    def batch(self, number: int) -> Batch:
        """This rank's slice of the `number`-th global batch, on the device."""

    def close(self) -> None:
        """End what reads in the background; there are no batches afterwards."""


class SplitBatches(Batches, Protocol):
    """The batches of a split. `per_epoch`: how many global ones hold every example of it once, or every token."""

    per_epoch: float


class ShuffledBatches:
    """Examples in a fresh order every epoch; batches run on from one epoch into the next.

    The endless `order` is cut into batches of exactly `batch_size`, so that every example is seen once an epoch, none
    is dropped, and all workers take equally many steps.
    """

    def __init__(
        self,
        arrays: SplitArrays,
        layout: Layout,
        order: Order,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout, self.order, self.batch_size = layout, order, batch_size
        self.per_epoch = order.count / batch_size
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.home = home_of(arrays.x, self.device)
        self.x, self.label = arrays.x.to(self.home), arrays.label.to(self.home)
        self.prompt = None if arrays.prompt is None else arrays.prompt.to(self.home)

    def rows(self, number: int) -> np.ndarray:
        """The rows of the `number`-th global batch, int64 `[batch_size]`."""
        parts = [
            self.order.rows(window)[start - window.start : stop - window.start]
            for window, start, stop in self.order.cut(number * self.batch_size, (number + 1) * self.batch_size)
        ]
        return np.concatenate(parts)

    def batch(self, number: int) -> Batch:
        index = torch.from_numpy(self.rows(number)[self.rank :: self.world_size].copy())
        at_home = to_device(index, self.home)
        # `index_select` copies a row at a time: 10 times as fast as indexing, which copies numbers.
        x, label = (to_device(values.index_select(0, at_home), self.device) for values in (self.x, self.label))
        prompt = None
        if self.prompt is not None:
            prompt = to_device(self.prompt.index_select(0, at_home), self.device).long()
        return Batch(self.layout.to_model(x), label, to_device(at_home, self.device), prompt)

    def close(self) -> None:
        """Nothing runs in the background."""


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
        self.length, self.device = layout.length, torch.device(device)
        self.home = home_of(arrays.x, self.device)
        self.stream = torch.cat([arrays.x.flatten(), arrays.tail.flatten().to(arrays.x.dtype)]).to(self.home)
        tokens = len(self.stream)
        check_tokens(tokens, self.length)
        self.per_epoch = tokens / (self.length * batch_size)
        lanes = torch.arange(batch_size, device=self.home)[rank::world_size]
        self.starts = lanes * tokens // batch_size
        self.within = torch.arange(self.length + 1, device=self.home)
        self.unlabelled = torch.full((len(lanes),), -1, device=self.device)

    def batch(self, number: int) -> Batch:
        starts = self.starts + number * self.length
        positions = (starts.unsqueeze(1) + self.within) % len(self.stream)
        index = (starts % len(self.stream)) // self.length
        x = to_device(self.stream[positions], self.device)
        return Batch(x.long(), self.unlabelled, to_device(index, self.device))

    def close(self) -> None:
        """Nothing runs in the background."""


def check_tokens(tokens: int, length: int) -> None:
    """Raises: PreparedDataError when a training text is shorter than a window and the token after it."""
    if tokens < length + 1:
        raise PreparedDataError(
            f"the training text has {tokens} tokens and a window is {length}; lower data.codec.length"
        )


def home_of(x: Tensor, device: torch.device) -> torch.device:
    """Where a split in memory lies: on the GPU that trains, where it takes up to `DEVICE_SHARE` of what is free there
    (the optimiser and the activations are still to come), else in the host's memory."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if x.nbytes <= DEVICE_SHARE * free else torch.device("cpu")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device; to a GPU by a copy that the step does not wait for.

    Only a copy from pinned memory is one. PyTorch keeps such memory, and gives it away again when the copy is done.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
