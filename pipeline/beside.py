"""Work beside other work that also waits: starting Ray, opening MLflow, hashing a corpus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Beside(threading.Thread):
    """A call in a thread of its own, beside what also waits; `result` waits for it and raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.call()
        except BaseException as error:  # raised again in the caller's thread
            self.error = error

    def result(self) -> Any:
        self.join()
        if self.error is not None:
            raise self.error
        return self.value
