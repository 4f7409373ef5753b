"""What a run of Ray Train is asked for: the words of its driver and of its controller, Ray's notices, SIGTERM.  [ray]

The driver and the controller write a word into the cluster's key-value store; rank 0 reads it, and whether Ray is about
to take a node away, in a thread. SIGTERM is heard by the worker's process that gets it. The only place that knows
where Ray Train keeps its notice: the public `get_preemption_info` is a collective through an actor, and this is asked
after every step.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

from pipeline.training.checkpoint import Position
from pipeline.training.termination import Termination
from pipeline.training.wishes import Wish

if TYPE_CHECKING:
    from ray.train.v2.api.preemption import PreemptionInfo

NAMESPACE = b"atelier"
HELD = "held"
LISTEN_SECONDS = 0.25
LEAST_MARGIN_SECONDS = 5.0
"""How long before a node is taken away the last checkpoint begins, at least; or twice what the first one took."""
UNKNOWN_NOTICE_SECONDS = 120.0
"""How long Ray Train waits for a node that is taken away without a deadline, before it starts the workers anew."""
HOLD_SECONDS = 60.0
"""After which a training that stands still and is not ended goes on."""

SIGTERM = Termination()
"""Of this process, where it is a training worker's."""


# --- the words ------------------------------------------------------------------------------------------------


def ask(run_key: str, wish: Wish) -> None:
    """Ask the workers of a run, from any process of the cluster, until it is withdrawn."""
    _put(run_key, wish.name, 0)


def withdraw(run_key: str, *wishes: Wish) -> None:
    """Ask for these no more, and forget at which step the workers stood still."""
    for word in (*(wish.name for wish in wishes), HELD):
        _internal_kv_del(_key(run_key, word), namespace=NAMESPACE)


def held_at(run_key: str) -> int | None:
    """The step after which the workers stand still, its checkpoint being there."""
    data = _internal_kv_get(_key(run_key, HELD), namespace=NAMESPACE)
    return int(data) if data else None


def _key(run_key: str, word: str) -> bytes:
    return f"{run_key}/{word}".encode()


def _put(run_key: str, word: str, step: int) -> None:
    _internal_kv_put(_key(run_key, word), str(step).encode(), overwrite=True, namespace=NAMESPACE)


# --- in a worker ----------------------------------------------------------------------------------------------


class CatchSigterm(WorkerCallback):
    """Catches SIGTERM in every worker: run by Ray Train in a worker's main thread, before the one that trains."""

    def after_init_train_context(self) -> None:
        SIGTERM.catch()


class Asked:
    """What one rank hears, and what it does once all have obeyed.

    A node that Ray says will be taken away is answered with two checkpoints: one at once, should it go early, and one
    shortly before the deadline, after which no step is taken that would be lost. From such a notice on the controller
    does nothing but wait for the deadline, and withdraws nothing: a HOLD that it asked for is no longer obeyed.
    """

    def __init__(self, run_key: str, rank: int) -> None:
        self.run_key, self.rank = run_key, rank
        self.word = Wish.NONE
        self.heard: tuple[Wish, PreemptionInfo | None] = Wish.NONE, None
        """The word and the notice as they last were in `hear`: what is obeyed goes by these, and others may come."""
        self.heard_at: float | None = None
        self.margin = LEAST_MARGIN_SECONDS
        self.notice: PreemptionInfo | None = None
        self.saved_for: PreemptionInfo | None = None
        self.deadline: float | None = None
        self.stop = threading.Event()
        SIGTERM.heeded = True
        self.thread = threading.Thread(target=self._listen, name="atelier-asked", daemon=True)
        if rank == 0:
            self.thread.start()

    def hear(self) -> Wish:
        self.heard = word, notice = self.word, self.notice
        wish = max(word, Wish.HOLD if SIGTERM.asked.is_set() else Wish.NONE)
        if notice is not None:
            wish = max(wish, self._of_notice(notice))
        if wish and self.heard_at is None:
            self.heard_at = time.monotonic()
        return wish

    def _of_notice(self, notice: PreemptionInfo) -> Wish:
        if self.deadline is not None and time.time() >= self.deadline - self.margin:
            return Wish.HOLD
        return Wish.NONE if notice == self.saved_for else Wish.SAVE

    def obeyed(self, wish: Wish, at: Position) -> None:
        """The checkpoint is there (rank 0 knows): with HOLD, until the wish is withdrawn or this process is ended."""
        own_end = SIGTERM.asked.is_set()
        if wish is Wish.SAVE:
            self.saved_for = self.heard[1]
            if self.heard_at is not None:
                self.margin = max(LEAST_MARGIN_SECONDS, 2 * (time.monotonic() - self.heard_at))
        self.heard_at = None
        if wish is not Wish.HOLD:
            return
        if self.rank == 0:
            _put(self.run_key, HELD, at.step)
        if own_end:
            _wait(lambda: held_at(self.run_key) == at.step)
            SIGTERM.insist()
            time.sleep(HOLD_SECONDS)
        if self.rank == 0:
            self._stand_still()

    def _stand_still(self) -> None:
        """The other ranks wait for this one in their next step."""
        until = max(time.time(), self.deadline or 0.0) + HOLD_SECONDS
        word, notice = self.heard  # NONE where a notice or a signal is the cause
        _wait(lambda: self.word is not word, until)
        # The workers were not ended: what was to take the node away is over, and they stand still no longer.
        if self.notice == notice:
            self.saved_for, self.deadline = self.notice, None
        withdraw(self.run_key)

    def close(self) -> None:
        SIGTERM.heeded = False
        self.stop.set()
        if self.rank == 0:
            self.thread.join()

    def _listen(self) -> None:
        while not self.stop.wait(LISTEN_SECONDS):
            notice = get_train_context().preemption_context.preemption_info
            word = self.word
            with contextlib.suppress(ray.exceptions.RayError, OSError):
                asked = _internal_kv_list(_key(self.run_key, ""), namespace=NAMESPACE)
                said = [wish for wish in (Wish.HOLD, Wish.END) if _key(self.run_key, wish.name) in asked]
                word = max(said, default=Wish.NONE)
            self.word = Wish.NONE if word is Wish.HOLD and notice is not None else word
            if notice is not None and notice != self.notice:
                seconds = None if notice.deadline_ms is None else notice.deadline_ms / 1000
                # In this order: the end of a standstill forgets the deadline of the notice that it was for.
                self.notice = notice
                self.deadline = time.time() + UNKNOWN_NOTICE_SECONDS if seconds is None else seconds


def _wait(over: Callable[[], bool], until: float | None = None) -> None:
    """Wait until it is over, or `until`, by default for as long as a training stands still."""
    until = time.time() + HOLD_SECONDS if until is None else until
    while not over() and time.time() < until:
        time.sleep(LISTEN_SECONDS)


# --- in the driver --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ends_when_stopped(run_key: str, within_seconds: float, begun: Callable[[], bool]) -> Iterator[Termination]:
    """While the block runs, SIGTERM asks the workers to save and end, and does at once what it did before where they
    have not `begun`, after `within_seconds` where they have not ended, and when it comes again."""
    withdraw(run_key, Wish.HOLD, Wish.END)
    over = threading.Event()
    with Termination() as termination:

        def wait() -> None:
            termination.asked.wait()
            if not over.is_set() and begun() and within_seconds > 0:
                ask(run_key, Wish.END)
                over.wait(within_seconds)
            if not over.is_set():
                termination.insist()

        thread = threading.Thread(target=wait, name="atelier-stopping", daemon=True)
        thread.start()
        try:
            yield termination
        finally:
            termination.heeded = False
            over.set()
            termination.asked.set()
            thread.join()
            with contextlib.suppress(ray.exceptions.RayError):  # a cluster that is gone forgets by itself
                withdraw(run_key, Wish.HOLD, Wish.END)
