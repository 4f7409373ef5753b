"""What a training is asked for from outside while it runs: to save, to stand still, to end; and how ranks agree on it.

Plain PyTorch, in every training worker. Each rank hears for itself (a signal, a notice of Ray's, a word of the
driver's); all act on the same wish after the same step, so that what they save is one state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training.checkpoint import Position
from pipeline.training.clock import Clock

LOOK_SECONDS = 0.25
"""Between two agreements, about: a wish is acted on after at most two of these and a step."""
MOST_STEPS = 1000
"""Between two agreements, however short the steps are."""


class Wish(IntEnum):
    """What may be asked; of several wishes the largest is acted on. All of them begin with a checkpoint."""

    NONE = 0
    SAVE = 1
    """Go on after it."""
    HOLD = 2
    """Take no step after it until the wish is withdrawn: the workers are about to be ended."""
    END = 3
    """Take no step after it, and end."""


class Unasked:
    """Hooks of a training that nobody asks for anything."""

    def hear(self) -> Wish:
        return Wish.NONE

    def obeyed(self, wish: Wish, at: Position) -> None:
        """Nothing was asked."""


class Agreement:
    """The wish that all ranks act on after a step: the largest that any of them hears.

    One rank is asked after every step. Several look about every `LOOK_SECONDS`, and never wait for each other there:
    what is sent at one look is read at the next. They speak over gloo, on the host, so that no GPU is waited for. Rank
    0's seconds go along, for the `clock` of each.
    """

    def __init__(self, hear: Callable[[], Wish], clock: Clock, world_size: int) -> None:
        self.hear, self.clock, self.world_size = hear, clock, world_size
        self.every = self.left = 1
        self.since = time.monotonic()
        self.sent: tuple[dist.Work, Tensor] | None = None
        self.group: dist.ProcessGroup | None = None
        if world_size > 1 and dist.get_backend() != "gloo":
            self.group = dist.new_group(backend="gloo")

    def look(self) -> Wish:
        """The wish to act on now, by all ranks or by none; every rank calls it after every step."""
        if self.world_size == 1:
            return self.hear()
        self.left -= 1
        if self.left > 0:
            return Wish.NONE
        wish, seconds = self._read()
        now = time.monotonic()
        own_seconds, self.since = (now - self.since) / self.every, now
        if seconds > 0:
            self.every = max(1, min(MOST_STEPS, int(LOOK_SECONDS / seconds)))
        self.left = self.every
        if wish is Wish.NONE:
            # After a wish the next look begins anew: what was heard before it was obeyed must not be obeyed again.
            self._send(own_seconds)
        return wish

    def close(self) -> None:
        """Read what is under way: all ranks have sent it, and all end after the same step."""
        self._read()

    def _send(self, seconds: float) -> None:
        of_the_clock = self.clock.own() if dist.get_rank() == 0 else 0.0  # the largest is rank 0's
        values = torch.tensor([float(self.hear()), seconds, of_the_clock], dtype=torch.float64)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self.sent = work, values

    def _read(self) -> tuple[Wish, float]:
        """The largest wish, and the seconds a step of the slowest rank; NONE and 0 where nothing was sent. The clock is
        set by what was."""
        if self.sent is None:
            return Wish.NONE, 0.0
        work, values = self.sent
        self.sent = None
        work.wait()
        wish, seconds, self.clock.shared = values.tolist()
        return Wish(int(wish)), seconds
