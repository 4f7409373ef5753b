"""The seconds of a training, over resumptions: this rank's own, and those that all ranks go by.

Plain Python, in every training worker.
"""

from __future__ import annotations

import time


class Clock:
    """Seconds in the loop, `before` this start of the training included.

    What depends on time must come after the same step on all ranks: they go by rank 0's seconds. One rank reads them
    off; several have those that `Agreement` brought them last, so that no message is sent, and no GPU waited for, for
    the time alone.
    """

    def __init__(self, before: float, world_size: int) -> None:
        self.before, self.world_size = before, world_size
        self.start = time.monotonic()
        self.shared = before

    def own(self) -> float:
        return self.before + time.monotonic() - self.start

    def look(self) -> float:
        """The seconds that all ranks use at this step."""
        if self.world_size == 1:
            self.shared = self.own()
        return self.shared
