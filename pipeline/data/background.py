"""Loading beside the training step: values that will be asked for, made in threads before they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Ahead(Generic[Key, Value]):
    """Holds the values of the keys that were last wanted, loaded or on their way, and lets go of all others.

    `load` runs in up to `threads` threads; what it raises, `get` raises. Used from one thread; `close` ends the others.
    """

    def __init__(self, load: Callable[[Key], Value], threads: int) -> None:
        self.load = load
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="atelier-batches")
        self._futures: dict[Key, Future[Value]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    def want(self, keys: Iterable[Key]) -> None:
        """Keep the values of these keys alone, and start loading those that are not there, in this order."""
        wanted = dict.fromkeys(keys)
        for key in [key for key in self._futures if key not in wanted]:
            self._futures.pop(key).cancel()
        for key in wanted:
            if key not in self._futures:
                self._futures[key] = self._threads.submit(self.load, key)

    def get(self, key: Key) -> Value:
        """The value of a key, waited for where it is not there yet."""
        if key not in self._futures:
            self._futures[key] = self._threads.submit(self.load, key)
        return self._futures[key].result()

    def close(self) -> None:
        """Let go of everything, and wait for the threads to end."""
        self._futures.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
