"""The claim to a run or a campaign: one process at a time goes on with it, on whichever machine.

Held by the driver. The same command twice, or a schedule beside it, would have two drivers write the checkpoints and
the MLflow run of one training. A claim is a small file in the run's folder that its owner writes again and again. Who
was killed holds it no longer: on this machine that is seen at once, of another one by a claim that stays as it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pipeline.errors import RunBusyError, StorageError
from pipeline.progress import Progress, silent
from pipeline.storage import Store

FILE = "claim.json"
BEAT_SECONDS = 10.0
WATCHED_BEATS = 3
"""After so many, another machine's claim that did not change is nobody's."""

logger = logging.getLogger(__name__)


def end_process() -> None:
    """Ask this process to end, as whoever stops a training does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Claim:
    """The claim to the run whose folder `store` is, for the length of the block. Raises: RunBusyError, StorageError.

    It may be lost: not every storage can make a file only where there is none, so that two that begin within the same
    moment may both hold it until the next beat; and a machine that stood still for long finds another there. `lost` is
    then called, in another thread, and `check` raises.
    """

    def __init__(self, store: Store, progress: Progress = silent, lost: Callable[[], None] = end_process) -> None:
        self.store, self.progress, self.lost = store, progress, lost
        self.owner = {"id": uuid.uuid4().hex, "machine": _machine(), "host": socket.gethostname(), **_process()}
        self.beats = 0
        self.lost_to: dict[str, Any] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="atelier-claim", daemon=True)

    def __enter__(self) -> Claim:
        if (held := self._read()) is not None:
            self._wait_out(held)
        self._write()
        self.lost_to = self._other()
        self.check()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # it is nobody's as soon as this process is gone
            if self._other() is None:
                self.store.delete_file(FILE)

    def check(self) -> None:
        """Raises: RunBusyError when another process has the claim now."""
        if self.lost_to is not None:
            raise self._busy(self.lost_to)

    def _wait_out(self, held: dict[str, Any]) -> None:
        if held.get("machine") == self.owner["machine"]:
            if _is_alive(held):
                raise self._busy(held)
            return
        until = time.monotonic() + WATCHED_BEATS * BEAT_SECONDS
        while time.monotonic() < until:
            note = f"another machine, {held.get('host')}, had this run: waiting whether it goes on"
            self.progress("start", 0, None, note)
            time.sleep(BEAT_SECONDS / 4)
            try:
                now = self._read()
            except StorageError as error:  # whose it is is not known
                logger.warning("%s; looking again", error)
                continue
            if now is None:
                return
            if now != held:
                raise self._busy(now)

    def _busy(self, held: dict[str, Any]) -> RunBusyError:
        return RunBusyError(
            f"{self.store.path()}: process {held.get('process')} on {held.get('host')} has this run; wait for it or "
            "stop it, and the same command goes on from there; for another beside it, change its name or its seed"
        )

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self.lost_to = self._other()
                if self.lost_to is not None:
                    logger.warning("%s; this one ends", self._busy(self.lost_to))
                    self.lost()
                    return
                self._write()
            except StorageError as error:
                logger.warning("the claim to this run could not be renewed: %s", error)

    def _other(self) -> dict[str, Any] | None:
        held = self._read()
        return None if held is None or held.get("id") == self.owner["id"] else held

    def _read(self) -> dict[str, Any] | None:
        if not self.store.exists(FILE):
            return None
        try:
            held = json.loads(self.store.read_bytes(FILE))
        except ValueError:  # nobody writes such a one
            return None
        except StorageError:
            if self.store.exists(FILE):
                raise
            return None  # it was given up meanwhile
        return held if isinstance(held, dict) else None

    def _write(self) -> None:
        self.beats += 1
        self.store.write_json({**self.owner, "beats": self.beats}, FILE)


def _machine() -> str:
    """A word for all processes that see each other's numbers: two containers of one host do not."""
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):  # there is neither where there is no Linux
        words += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(words)


def _process() -> dict[str, Any]:
    return {"process": os.getpid(), "started": _started(psutil.Process())}


def _started(process: psutil.Process) -> float:
    """When a process started, where there is Linux in ticks since the machine did: psutil's seconds follow the clock
    when that is set."""
    with contextlib.suppress(OSError, IndexError):
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float(process.create_time())


def _is_alive(held: dict[str, Any]) -> bool:
    """Whether the process of this machine that wrote a claim is there still, and not only its number."""
    try:
        process = psutil.Process(int(held["process"]))
        return _started(process) == held["started"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False
