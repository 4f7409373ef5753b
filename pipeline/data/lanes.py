"""Lanes of continuous text from shards, whose row groups are read and decoded beside the training step.

Runs in every training worker. Bit for bit the batches of `LaneBatches`, but of the text no more is held than the row
groups in which a worker's lanes stand, and those that they reach next. Shards may lie on any filesystem.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.background import Ahead
from pipeline.data.batches import check_tokens, to_device
from pipeline.data.layout import Layout
from pipeline.data.shard_reader import ShardReader
from pipeline.models.base import Batch

THREADS = 4
"""Readers of row groups: at a start every lane waits for one, and on an object store a read is mostly waiting."""
STEPS_AHEAD = 256
"""Steps before a lane reaches a row group, from which on it is read: seconds of training, and 2% of a row group."""


class StreamedLanes:
    """`LaneBatches` from shards: holds the row groups in which this rank's lanes stand, and those they reach next."""

    def __init__(
        self,
        shards: Sequence[ShardReader],
        tail: Sequence[int],
        layout: Layout,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shards, self.length, self.device = shards, layout.length, torch.device(device)
        self.tail = np.array(tail, layout.stored_dtype)
        self.groups = [(shard, group) for shard, reader in enumerate(shards) for group in range(reader.num_groups)]
        sizes = [shards[shard].rows_in(group) * self.length for shard, group in self.groups]
        # Block i holds the tokens bounds[i] to bounds[i + 1]: a row group each, and at last the tail.
        self.bounds = np.cumsum([0, *sizes, len(self.tail)], dtype=np.int64)
        self.num_blocks, self.tokens = len(self.bounds) - 1, int(self.bounds[-1])
        check_tokens(self.tokens, self.length)
        self.per_epoch = self.tokens / (self.length * batch_size)
        self.starts = np.arange(batch_size)[rank::world_size] * self.tokens // batch_size
        # Not further than a row group, so that a lane holds no more than two or three.
        self.distance = min(STEPS_AHEAD, *(shard.group_rows for shard in shards)) * self.length if shards else 0
        self._seen: tuple[bytes, bytes] | None = None
        self._ahead = Ahead(self._load, threads=THREADS)

    def batch(self, number: int) -> Batch:
        """Raises: PreparedDataError, naming the shard that is missing or damaged."""
        starts = (self.starts + number * self.length) % self.tokens
        first = self._blocks(starts)
        self._want(first, self._blocks((starts + self.distance) % self.tokens))
        x = np.empty((len(starts), self.length + 1), np.int64)
        for out, start, block in zip(x, starts.tolist(), first.tolist(), strict=True):
            self._fill(out, start, block)
        label = np.full(len(starts), -1, np.int64)
        parts = (to_device(torch.from_numpy(values), self.device) for values in (x, label, starts // self.length))
        return Batch(*parts)

    def close(self) -> None:
        self._ahead.close()

    def _blocks(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bounds, positions, side="right") - 1

    def _want(self, first: np.ndarray, ahead: np.ndarray) -> None:
        """Hold the blocks from where each lane stands to where it will; those they stand on are read first."""
        seen = (first.tobytes(), ahead.tobytes())
        if seen == self._seen:
            return
        self._seen = seen
        wanted = first.tolist()
        for begin, end in zip(first.tolist(), ahead.tolist(), strict=True):
            wanted += [(begin + step) % self.num_blocks for step in range(1, (end - begin) % self.num_blocks + 1)]
        self._ahead.want(wanted)

    def _fill(self, out: np.ndarray, start: int, block: int) -> None:
        """Tokens from `start` on, over the ends of blocks and round the end of the stream."""
        filled = 0
        while filled < len(out):
            tokens = self._ahead.get(block)
            begin = (start + filled) % self.tokens - int(self.bounds[block])
            taken = tokens[begin : begin + len(out) - filled]
            out[filled : filled + len(taken)] = taken
            filled += len(taken)
            block = (block + 1) % self.num_blocks

    def _load(self, block: int) -> np.ndarray:
        """Runs in the background."""
        if block == len(self.groups):
            return self.tail
        shard, group = self.groups[block]
        return self.shards[shard].group(group).reshape(-1)
