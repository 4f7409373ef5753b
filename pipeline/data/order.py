"""The order in which training sees a split: a function of (seed, position) for given shards and a shuffle window.

Neither the number of workers nor where the examples lie comes into it: in memory and streamed they come alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.data.layout import Layout
from pipeline.models.base import make_generator

WINDOW_BYTES = 512 * 2**20
"""What a window holds at most, however few examples that are (but always a shard): streaming holds two of them."""


@dataclass(frozen=True)
class Window:
    """Shards whose rows are shuffled together, at one place of the endless order.

    `number` counts the windows of `epoch`; `shards` are places in the manifest's list, ascending; `start` and `stop`
    are the positions of its examples in the endless order.
    """

    epoch: int
    number: int
    shards: tuple[int, ...]
    start: int
    stop: int


class Order:
    """An endless sequence of epochs, each of which has every row of the split once.

    An epoch permutes the shards and joins neighbours into windows of up to `window_rows` rows (at least one shard);
    each window is a random permutation of its rows. A split that fits one window is permuted as a whole. Safe to use
    from several threads.
    """

    def __init__(self, shard_rows: Sequence[int], window_rows: int, seed: int) -> None:
        self.shard_rows = [int(rows) for rows in shard_rows]
        self.first_rows = [0, *np.cumsum(self.shard_rows, dtype=np.int64).tolist()][: len(self.shard_rows)]
        self.window_rows, self.seed = window_rows, seed
        self.count = sum(self.shard_rows)
        # A batch spans few epochs and windows; those behind are not needed again.
        self._windows = lru_cache(maxsize=2)(self._make_windows)
        self.rows = lru_cache(maxsize=2)(self._permute)

    def _make_windows(self, epoch: int) -> list[Window]:
        shards = torch.randperm(len(self.shard_rows), generator=make_generator(self.seed, "shards", epoch)).tolist()
        windows: list[Window] = []
        together: list[int] = []
        held, start = 0, epoch * self.count
        for shard in [*shards, None]:
            rows = 0 if shard is None else self.shard_rows[shard]
            if together and (shard is None or held + rows > self.window_rows):
                windows.append(Window(epoch, len(windows), tuple(sorted(together)), start, start + held))
                together, held, start = [], 0, start + held
            if rows:
                together.append(shard)
                held += rows
        return windows

    def _permute(self, window: Window) -> np.ndarray:
        """The rows of the split that a window holds, int64 `[stop - start]`, in their order."""
        rows = np.concatenate(
            [
                np.arange(self.first_rows[shard], self.first_rows[shard] + self.shard_rows[shard])
                for shard in window.shards
            ]
        )
        generator = make_generator(self.seed, "order", window.epoch, *([window.number] if window.number else []))
        return rows[torch.randperm(len(rows), generator=generator).numpy()]

    def window_at(self, position: int) -> Window:
        """The window in which a position of the endless order lies."""
        windows = self._windows(position // self.count)
        return windows[bisect_right(windows, position, key=lambda window: window.start) - 1]

    def cut(self, start: int, stop: int) -> Iterator[tuple[Window, int, int]]:
        """The parts of the positions `start` to `stop` by window: each with its first position and the one after its
        last."""
        while start < stop:
            window = self.window_at(start)
            end = min(stop, window.stop)
            yield window, start, end
            start = end


def window_rows(layout: Layout, shuffle_window: int) -> int:
    """Examples that are shuffled together: `training.shuffle_window`, or fewer where these are more than
    `WINDOW_BYTES`."""
    return max(1, min(shuffle_window, WINDOW_BYTES // layout.example_bytes))
