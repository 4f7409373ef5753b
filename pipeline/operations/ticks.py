"""The scheduler's state: when each schedule is due next, and every tick with what became of it, in one SQLite file.

Shared by all schedulers on the file: a tick is a row (name, time) that one of them inserts, so it runs once; a row that
is open keeps the next tick from overlapping it. A process that is gone is known by its id and the time it started, or,
on another machine, by a heartbeat that stopped. The file holds plain values: nothing in it is run when it is read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.errors import ScheduleError

BEAT_STALE_SECONDS = 60
"""After this long without a heartbeat a process of another machine counts as gone."""

TABLES = """
CREATE TABLE IF NOT EXISTS schedules (name TEXT PRIMARY KEY, cron TEXT NOT NULL, timezone TEXT NOT NULL, next_at REAL);
CREATE TABLE IF NOT EXISTS ticks (
    name TEXT NOT NULL, tick REAL NOT NULL, status TEXT NOT NULL, at REAL NOT NULL, ended_at REAL,
    exit_code INTEGER, answer TEXT, note TEXT, log TEXT,
    host TEXT, owner INTEGER, owner_started REAL, child INTEGER, child_started REAL, beat_at REAL,
    PRIMARY KEY (name, tick)
);
"""

Status = Literal["claimed", "running", "finished", "failed", "interrupted", "lost", "missed", "overlapped"]
"""`claimed` and `running` are open; `interrupted`: the scheduler was stopped; `lost`: it died, and so did the tick."""


@dataclass(frozen=True)
class Tick:
    """A row of the history; times are seconds since 1970."""

    name: str
    tick: float
    status: str
    at: float
    ended_at: float | None
    exit_code: int | None
    answer: str | None
    note: str | None
    log: str | None
    host: str | None
    owner: int | None
    owner_started: float | None
    child: int | None
    child_started: float | None
    beat_at: float | None

    def is_alive(self) -> bool:
        """Whether the scheduler that claimed it, or the process that it started, still runs."""
        if self.host != os.uname().nodename:
            return time.time() - (self.beat_at or 0) < BEAT_STALE_SECONDS
        return _runs(self.owner, self.owner_started) or self.child_is_alive()

    def child_is_alive(self) -> bool:
        return self.host == os.uname().nodename and _runs(self.child, self.child_started)


def _runs(process: int | None, started: float | None) -> bool:
    if process is None or started is None:
        return False
    try:
        found = psutil.Process(process)
        return abs(found.create_time() - started) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TickState:
    """The SQLite file at `path`, made if there is none. Raises: ScheduleError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host, self.owner = os.uname().nodename, os.getpid()
        self.owner_started = psutil.Process().create_time()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connected() as connection:
                connection.executescript(TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ScheduleError(
                f"{path}: the schedules' state cannot be opened: {error}; check the path, the space left and the "
                "permissions, or give another file with --state"
            ) from None

    @contextlib.contextmanager
    def _connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            if write:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if write:
                connection.execute("COMMIT")
        finally:
            connection.close()  # what was not committed is undone

    # --- when -------------------------------------------------------------------------------------------------

    def settle(self, name: str, cron: str, timezone: str, first_at: float) -> float:
        """When the schedule is due: as it was known, or at `first_at` when it is new or its times were changed."""
        with self._connected(write=True) as connection:
            row = connection.execute("SELECT cron, timezone, next_at FROM schedules WHERE name = ?", (name,)).fetchone()
            if row is not None and row[:2] == (cron, timezone) and row[2] is not None:
                return float(row[2])
            connection.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?)", (name, cron, timezone, first_at))
        return first_at

    def advance(self, name: str, next_at: float) -> None:
        """Move on; never back, since another scheduler may have moved further."""
        with self._connected(write=True) as connection:
            connection.execute("UPDATE schedules SET next_at = max(next_at, ?) WHERE name = ?", (next_at, name))

    def due(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Of `names`, when each is due next, soonest first."""
        with self._connected() as connection:
            rows = connection.execute("SELECT name, next_at FROM schedules ORDER BY next_at").fetchall()
        return [(name, next_at) for name, next_at in rows if name in names and next_at is not None]

    # --- ticks ------------------------------------------------------------------------------------------------

    def claim(self, name: str, tick: float) -> Literal["claimed", "taken", "overlapped"]:
        """Make a tick this process's: it is `taken` when it has a row, `overlapped` while another tick is open."""
        with self._connected(write=True) as connection:
            if connection.execute("SELECT 1 FROM ticks WHERE name = ? AND tick = ?", (name, tick)).fetchone():
                return "taken"
            open_ticks = self._select(connection, "name = ? AND status IN ('claimed', 'running')", (name,))
            status: Literal["claimed", "overlapped"] = "claimed"
            if any(other.is_alive() for other in open_ticks):
                status = "overlapped"
            self._insert(connection, name, tick, status)
        return status

    def note(self, name: str, tick: float, status: Status, note: str | None = None) -> bool:
        """Record a tick that is not run, unless it has a row; whether it had none."""
        with self._connected(write=True) as connection:
            if connection.execute("SELECT 1 FROM ticks WHERE name = ? AND tick = ?", (name, tick)).fetchone():
                return False
            self._insert(connection, name, tick, status, note)
        return True

    def _insert(
        self, connection: sqlite3.Connection, name: str, tick: float, status: str, note: str | None = None
    ) -> None:
        now = time.time()
        connection.execute(
            "INSERT INTO ticks (name, tick, status, at, note, host, owner, owner_started, beat_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (name, tick, status, now, note, self.host, self.owner, self.owner_started, now),
        )

    def take_over(self, tick: Tick) -> bool:
        """Make a claim of a scheduler that is gone this process's; whether no other did first."""
        with self._connected(write=True) as connection:
            return self._update(
                connection, tick, {"owner": self.owner, "owner_started": self.owner_started, "beat_at": time.time()}
            )

    def change(self, tick: Tick, **values: Any) -> bool:
        """Set columns of a tick that no other process has changed; whether that was so."""
        with self._connected(write=True) as connection:
            return self._update(connection, tick, values)

    def _update(self, connection: sqlite3.Connection, tick: Tick, values: dict[str, Any]) -> bool:
        columns = ", ".join(f"{column} = ?" for column in values)
        found = connection.execute(
            f"UPDATE ticks SET {columns} WHERE name = ? AND tick = ? AND owner = ? AND status = ?",
            (*values.values(), tick.name, tick.tick, tick.owner, tick.status),
        )
        return found.rowcount == 1

    def get(self, name: str, tick: float) -> Tick:
        with self._connected() as connection:
            (found,) = self._select(connection, "name = ? AND tick = ?", (name, tick))
        return found

    def open_ticks(self, names: Sequence[str]) -> list[Tick]:
        """Ticks of `names` that were claimed and have not ended."""
        with self._connected() as connection:
            found = self._select(connection, "status IN ('claimed', 'running')", ())
        return [tick for tick in found if tick.name in names]

    def beat(self) -> None:
        """Say that this process still runs."""
        with self._connected(write=True) as connection:
            connection.execute(
                "UPDATE ticks SET beat_at = ? WHERE status IN ('claimed', 'running') AND owner = ? AND host = ?",
                (time.time(), self.owner, self.host),
            )

    def history(self, name: str, most: int = 20) -> list[Tick]:
        """The newest ticks of a schedule, newest first."""
        with self._connected() as connection:
            return self._select(connection, "name = ? ORDER BY tick DESC LIMIT ?", (name, most))

    def _select(self, connection: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[Tick]:
        columns = ", ".join(Tick.__dataclass_fields__)
        return [Tick(*row) for row in connection.execute(f"SELECT {columns} FROM ticks WHERE {where}", values)]
