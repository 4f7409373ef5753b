"""SIGTERM as a request: the first asks for an end, and only the second ends the process, as it would have before, or
a time after which that has not come.

Plain Python, in the main thread of a driver or of a training worker, where signals arrive; any thread may ask.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.25
"""Between two looks whether an end was asked for."""


class Termination:
    """Catches SIGTERM while it is heeded."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.heeded = False
        self.before: Any = None

    def catch(self) -> None:
        """Catch the signal from now on, where this is the main thread; elsewhere all stays as it was."""
        if threading.current_thread() is threading.main_thread() and self.before is None:
            self.before = signal.signal(signal.SIGTERM, self._receive)

    def release(self) -> None:
        """Put back what was there before."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None

    def insist(self) -> None:
        """End the process as SIGTERM would have ended it, from any thread."""
        self.heeded = False
        os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """While the block runs, the signal asks for an end, and ends the process when the block is not over after so
        many seconds; with 0 the signal is not caught."""
        if seconds == 0:
            yield
            return
        over = threading.Event()

        def wait() -> None:
            while not over.wait(LOOK_SECONDS):
                if self.asked.is_set():
                    if not over.wait(seconds):
                        self.insist()
                    return

        thread = threading.Thread(target=wait, name="atelier-stopping", daemon=True)
        with self:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()

    def __enter__(self) -> Termination:
        self.catch()
        self.heeded = True
        return self

    def __exit__(self, *_: object) -> None:
        self.heeded = False
        self.release()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.heeded and not self.asked.is_set():
            self.asked.set()
        elif callable(self.before):
            self.before(number, frame)
        elif self.before == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
