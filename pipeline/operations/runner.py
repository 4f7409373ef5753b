"""Ticks as processes: started, waited for, recorded, and ended when the scheduler is asked to stop.

In the scheduler's process; one thread a tick that runs. Each process writes its output into files beside the state, so
that it outlives a scheduler that is killed, and the next one reads how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from apscheduler.events import JobSubmissionEvent

from pipeline.errors import ScheduleError
from pipeline.operations.schedule_file import CommandRuns, Schedule, SubmitRuns
from pipeline.operations.submit import STOPPED_WITHIN_SECONDS, stop_seconds
from pipeline.operations.ticks import Tick, TickState

STOP_SECONDS = 30.0
"""How long a command may take to end when the scheduler is stopped."""
LOGS_KEPT = 200
"""Of each schedule, the newest ticks whose output is kept."""

Tell = Callable[[str], None]


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def command_of(schedule: Schedule) -> list[str]:
    """The command of a tick."""
    runs, file = schedule.spec.runs, str(schedule.path)
    if isinstance(runs, CommandRuns):
        return list(runs.command)
    jobs = [sys.executable, "-m", "jobs"]
    if isinstance(runs, SubmitRuns):
        return [*jobs, "submit", "retrain", file, "--once", "--address", runs.address]
    return [*jobs, "retrain", file, "--once"]


def seconds_to_end(schedule: Schedule) -> float:
    """How long its process may take to end when the scheduler is stopped: a training saves and ends its Ray, and one
    that was submitted is waited for by the process here."""
    if schedule.retraining is None:
        return STOP_SECONDS
    seconds = stop_seconds(schedule.retraining.base)
    return seconds + STOPPED_WITHIN_SECONDS if isinstance(schedule.spec.runs, SubmitRuns) else seconds


class Runner:
    """Runs ticks as processes, records what becomes of them, and ends them when asked."""

    def __init__(self, schedules: dict[str, Schedule], state: TickState, tell: Tell) -> None:
        self.schedules, self.state, self.tell = schedules, state, tell
        self.pool = ThreadPoolExecutor(max_workers=2 * len(schedules), thread_name_prefix="atelier-tick")
        self.stopping = threading.Event()
        self.ended: Counter[str] = Counter()
        self._processes: dict[subprocess.Popen[bytes], float] = {}
        self._lock = threading.Lock()

    def claimed(self, name: str, ticks: Sequence[float]) -> Tick | None:
        """Of ticks that are due, the newest, if it is this process's to run; the others are recorded as missed."""
        *earlier, newest = ticks
        misfire = self.schedules[name].spec.misfire
        if earlier:
            more = f", and {len(earlier) - 1} before it" if len(earlier) > 1 else ""
            if self.state.note(name, earlier[-1], "missed", f"a later one was due too{more}"):
                self._count(name, earlier[-1], "missed")
        late = time.time() - newest
        if misfire.policy == "skip" and late > misfire.grace_seconds:
            if self.state.note(name, newest, "missed", f"{late:.0f} s late"):
                self._count(name, newest, "missed")
            return None
        became = self.state.claim(name, newest)
        if became == "overlapped":
            self._count(name, newest, "overlapped")
        return self.state.get(name, newest) if became == "claimed" else None

    def overlapped(self, event: JobSubmissionEvent) -> None:
        """Record ticks that came while this process still ran one before."""
        for run_time in event.scheduled_run_times:
            if self.state.note(event.job_id, run_time.timestamp(), "overlapped", "the one before still runs"):
                self._count(event.job_id, run_time.timestamp(), "overlapped")

    def run(self, tick: Tick) -> None:
        """Start a claimed tick's process, wait for it and record how it ended."""
        log = self._log_folder(tick.name) / f"{datetime.fromtimestamp(tick.tick, UTC):%Y%m%dT%H%M%SZ}"
        process = self._start(tick, log)
        if process is None:
            return
        running = self.state.get(tick.name, tick.tick)
        code = process.wait()
        with self._lock:
            self._processes.pop(process, None)
        status = "finished" if code == 0 else "interrupted" if self.stopping.is_set() else "failed"
        self._end(running, status, code, _last_line(log))
        self._prune(tick.name)

    def _start(self, tick: Tick, log: Path) -> subprocess.Popen[bytes] | None:
        schedule = self.schedules[tick.name]
        command = command_of(schedule)
        with self._lock:
            if self.stopping.is_set():
                self._end(tick, "interrupted", None, None)
                return None
            try:
                with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as errors:
                    # A session of its own: Ctrl-C at the terminal reaches the scheduler alone, which asks it to end.
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
                    )
            except OSError as error:
                self._end(tick, "failed", None, json.dumps({"error": f"{command[0]}: {error}", "kind": "OSError"}))
                return None
            self._processes[process] = seconds_to_end(schedule)
        started_at: float | None = None
        with suppress(psutil.NoSuchProcess):
            started_at = psutil.Process(process.pid).create_time()
        self.state.change(tick, status="running", child=process.pid, child_started=started_at, log=str(log))
        self.tell(f"{tick.name}: tick of {moment(tick.tick)} runs as process {process.pid}, its output in {log}.err")
        return process

    def broken(self, name: str, error: Exception) -> None:
        """Record that ticks of a schedule could not be followed to their end, such as on a full disk."""
        self.tell(f"{name}: {type(error).__name__}: {error}")
        for tick in self.state.open_ticks([name]):
            if tick.owner == self.state.owner and tick.host == self.state.host and not tick.child_is_alive():
                self._end(tick, "failed", None, json.dumps({"error": str(error), "kind": type(error).__name__}))

    def recover(self) -> None:
        """Take up what schedulers that are gone left: claims that they did not start, processes that have ended."""
        for tick in self.state.open_ticks(list(self.schedules)):
            if tick.is_alive() or self.stopping.is_set():
                continue
            if tick.status == "claimed" and self.schedules[tick.name].spec.misfire.policy == "run_once":
                if self.state.take_over(tick):
                    self.pool.submit(self.run, self.state.get(tick.name, tick.tick))
                continue
            answer = _last_line(Path(tick.log)) if tick.log else None
            self._end(tick, _status_of(answer), None, answer, "the scheduler that started it was killed")

    def stop(self) -> None:
        """Ask every process to end, wait, and kill what is left of them."""
        with self._lock:
            processes = sorted(self._processes.items(), key=lambda one: one[1])
        for process, _ in processes:
            process.terminate()
        start = time.monotonic()
        for process, seconds in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, start + seconds - time.monotonic()))
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self.pool.shutdown(wait=True, cancel_futures=True)
        for tick in self.state.open_ticks(list(self.schedules)):
            if tick.owner == self.state.owner and tick.host == self.state.host and tick.status == "claimed":
                self._end(tick, "interrupted", None, None)

    def _end(self, tick: Tick, status: str, code: int | None, answer: str | None, note: str | None = None) -> None:
        if self.state.change(tick, status=status, exit_code=code, answer=answer, note=note, ended_at=time.time()):
            self._count(tick.name, tick.tick, status, code, answer)

    def _count(self, name: str, tick: float, status: str, code: int | None = None, answer: str | None = None) -> None:
        with suppress(RuntimeError):
            self.ended[status] += 1
        parts = [f"{name}: tick of {moment(tick)} {status}"]
        parts += [] if code is None else [f"with exit code {code}"]
        parts += [] if answer is None else [answer]
        self.tell(" ".join(parts))

    def _log_folder(self, name: str) -> Path:
        folder = self.state.path.parent / "logs" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScheduleError(f"{folder}: cannot be made: {error}") from None
        return folder

    def _prune(self, name: str) -> None:
        kept = sorted(self._log_folder(name).glob("*.err"))
        for old in kept[:-LOGS_KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".out").unlink(missing_ok=True)


def _status_of(answer: str | None) -> str:
    """How a process ended whose exit code is not known, by its answer: a job's last line is JSON."""
    try:
        values = json.loads(answer or "")
    except ValueError:
        return "lost"
    return "failed" if isinstance(values, dict) and "error" in values else "finished"


def _last_line(log: Path) -> str | None:
    """The last line that a process wrote to its standard output."""
    with suppress(OSError):
        lines = Path(f"{log}.out").read_text(errors="replace").strip().splitlines()
        return lines[-1][:20_000] if lines else None
    return None
