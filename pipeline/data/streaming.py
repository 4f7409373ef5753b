"""Batches of shuffled examples from shards, which are read and decoded beside the training step.

Runs in every training worker. Bit for bit the batches of `ShuffledBatches`, but of the split no more is held than two
windows of the order, and of these a worker's own rows alone. Shards may lie on any filesystem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.background import Ahead
from pipeline.data.batches import to_device
from pipeline.data.layout import Layout
from pipeline.data.order import Order, Window
from pipeline.data.prompts import PROMPT_DTYPE
from pipeline.data.shard_reader import ShardReader
from pipeline.models.base import Batch


@dataclass(frozen=True)
class _Loaded:
    """This rank's rows of a window, in order: `x` `[N, *shape]`, `label` and `row` int64 `[N]`, `prompt` `[N, P]`,
    where P is 0 in a set without prompts."""

    x: np.ndarray
    label: np.ndarray
    row: np.ndarray
    prompt: np.ndarray


class StreamedBatches:
    """`ShuffledBatches` from shards: holds this rank's rows of one window, and loads those of the next meanwhile."""

    def __init__(
        self,
        shards: Sequence[ShardReader],
        layout: Layout,
        order: Order,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shards, self.layout, self.order, self.batch_size = shards, layout, order, batch_size
        self.per_epoch = order.count / batch_size
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._own_per_batch = len(range(rank, batch_size, world_size))
        self._window: Window | None = None
        # One thread: it decodes some hundred megabytes a second, and the processors are the training's.
        self._ahead = Ahead(self._load, threads=1)

    def batch(self, number: int) -> Batch:
        """Raises: PreparedDataError, naming the shard that is missing or damaged."""
        count = self._own_per_batch
        x = np.empty((count, *self.layout.shape), self.layout.loaded_dtype)
        label, row = np.empty(count, np.int64), np.empty(count, np.int64)
        prompt = np.empty((count, self.layout.prompt_length), PROMPT_DTYPE)
        filled = 0
        for window, start, stop in self.order.cut(number * self.batch_size, (number + 1) * self.batch_size):
            loaded = self._loaded(window)
            first, last = (self._own_before(position) - self._own_before(window.start) for position in (start, stop))
            part = slice(filled, filled + last - first)
            x[part], label[part], row[part] = loaded.x[first:last], loaded.label[first:last], loaded.row[first:last]
            prompt[part] = loaded.prompt[first:last]
            filled += last - first
        examples, labels, rows = (to_device(torch.from_numpy(values), self.device) for values in (x, label, row))
        tokens = to_device(torch.from_numpy(prompt), self.device).long() if self.layout.prompt_length else None
        return Batch(self.layout.to_model(examples), labels, rows, tokens)

    def close(self) -> None:
        self._ahead.close()

    def _loaded(self, window: Window) -> _Loaded:
        if window != self._window:
            self._ahead.want([window, self.order.window_at(window.stop)])
            self._window = window
        return self._ahead.get(window)

    def _own_before(self, position: int) -> int:
        """How many of the endless order's positions before this one are this rank's."""
        batches, rest = divmod(position, self.batch_size)
        return batches * self._own_per_batch + len(range(self.rank, rest, self.world_size))

    def _load(self, window: Window) -> _Loaded:
        """Runs in the background."""
        places = np.arange(window.start, window.stop) % self.batch_size
        rows = self.order.rows(window)[places % self.world_size == self.rank]
        x = np.empty((len(rows), *self.layout.shape), self.layout.stored_dtype)
        label = np.empty(len(rows), np.int64)
        prompt = np.empty((len(rows), self.layout.prompt_length), PROMPT_DTYPE)
        targets = np.argsort(rows)
        ascending = rows[targets]
        for shard in window.shards:
            for begin, examples in self.shards[shard].groups():
                begin += self.order.first_rows[shard]
                low, high = np.searchsorted(ascending, [begin, begin + len(examples.x)])
                target = targets[low:high]
                # All of them, in ascending order, or some.
                chosen = slice(None) if len(target) == len(examples.x) else ascending[low:high] - begin
                x[target], label[target] = examples.x[chosen], examples.label[chosen]
                if examples.prompt is not None:
                    prompt[target] = examples.prompt[chosen]
        return _Loaded(x, label, rows, prompt)
