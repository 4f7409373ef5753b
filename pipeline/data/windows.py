"""Long examples in windows, so that a recurrent state is carried through an example from step to step.

Runs in every training worker, between the batches of whole examples and the loop (truncated back-propagation through
time). The k-th batch is computed, not iterated to, as theirs is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.batches import SplitBatches, to_device
from pipeline.models.base import Batch


class WindowedBatches:
    """Batches of `examples` in lanes: each reads its examples one after another, a window of `window` tokens a step.

    Lane i of B begins i / B of an example ahead, so that at every step some lanes begin an example (`Batch.start` is 0
    there: the carried state ends) and the gradient is of all its parts alike. Every example is read once an epoch, but
    for what the lanes skip of their very first.
    """

    def __init__(
        self, examples: SplitBatches, length: int, window: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.examples, self.window = examples, window
        self.num_windows = -(-length // window)
        self.per_epoch = examples.per_epoch * self.num_windows
        lanes = torch.arange(batch_size)[rank::world_size]
        self.ahead = lanes * self.num_windows // batch_size
        self._held: dict[int, Batch] = {}

    def batch(self, number: int) -> Batch:
        """This rank's lanes at step `number`: whole examples, and in `start` where the step's window begins."""
        turns, windows = (number + self.ahead) // self.num_windows, (number + self.ahead) % self.num_windows
        first, last = int(turns[0]), int(turns[-1])
        batch = self._examples(first)
        self._held = {turn: held for turn, held in self._held.items() if turn >= first}
        if last > first:
            later = self._examples(last)
            moved = to_device(turns > first, batch.x.device)
            prompt = None
            if batch.prompt is not None and later.prompt is not None:
                prompt = _chosen(moved, batch.prompt, later.prompt)
            x, label, index = (
                _chosen(moved, getattr(batch, name), getattr(later, name)) for name in ("x", "label", "index")
            )
            batch = Batch(x, label, index, prompt)
        return replace(batch, start=to_device(windows * self.window, batch.x.device))

    def _examples(self, turn: int) -> Batch:
        if turn not in self._held:
            self._held[turn] = self.examples.batch(turn)
        return self._held[turn]

    def close(self) -> None:
        self.examples.close()


def _chosen(moved: Tensor, before: Tensor, later: Tensor) -> Tensor:
    """Of each lane, what it reads: `later` where it has moved on."""
    return torch.where(moved.view(-1, *[1] * (before.dim() - 1)), later, before)
