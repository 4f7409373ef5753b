"""The scheduler: runs each schedule by its cron expression, once a tick, however many schedulers there are.

A process of its own (`atelier schedule`). APScheduler keeps the time; what it knows is in the SQLite file of `ticks`,
which a scheduler that is started again, or a second one beside it, goes on from. A tick is a process: a retraining of
this machine, a job that is submitted to a cluster, or a command. When the scheduler is stopped it asks its processes to
end and waits for them; when it is killed they go on, and the next scheduler waits for them before it starts another.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.base import BaseExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore, JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from pipeline.errors import SpecError
from pipeline.operations.cron import make_trigger
from pipeline.operations.runner import Runner, Tell, moment
from pipeline.operations.schedule_file import Schedule
from pipeline.operations.ticks import Tick, TickState
from pipeline.storage import open_store

STATE = ("schedule", "state.db")
SWEEP_SECONDS = 2.0


def state_file(schedules: Sequence[Schedule]) -> Path:
    """Where the schedules' state is by default: in their storage. Raises: SpecError when that is not one folder."""
    uris = {schedule.retraining.base.storage for schedule in schedules if schedule.retraining is not None}
    stores = {store.uri: store for store in map(open_store, uris or {"storage"})}
    if len(stores) != 1 or not (store := next(iter(stores.values()))).is_local:
        raise SpecError(
            f"the schedules' confs have the storages {', '.join(sorted(stores))}: say with --state in which local file "
            "the state of the schedules is kept"
        )
    return store.local_path(*STATE)


def list_schedules(schedules: Sequence[Schedule], state_path: Path) -> list[dict[str, Any]]:
    """Each schedule with its next times and its last ticks; changes nothing."""
    state = TickState(state_path) if state_path.exists() else None
    return [
        {
            "name": schedule.spec.name,
            "file": str(schedule.path),
            "cron": schedule.spec.cron,
            "timezone": schedule.spec.timezone,
            "runs": schedule.spec.runs.model_dump(mode="json"),
            "next": [time.isoformat() for time in schedule.spec.next_times(3)],
            "last": [as_dict(tick) for tick in state.history(schedule.spec.name, 3)] if state else [],
        }
        for schedule in schedules
    ]


def as_dict(tick: Tick) -> dict[str, Any]:
    """A tick as it is shown: its time, what became of it, its process's answer and where its output is."""
    answer = None
    if tick.answer:
        with suppress(ValueError):
            answer = json.loads(tick.answer)
    shown = {"tick": moment(tick.tick), "status": tick.status, "exit_code": tick.exit_code, "answer": answer}
    return {key: value for key, value in {**shown, "note": tick.note, "log": tick.log}.items() if value is not None}


def run_schedules(schedules: Sequence[Schedule], state_path: Path, tell: Tell) -> dict[str, Any]:
    """Keep the schedules until SIGINT or SIGTERM; then end their processes and say how many ticks ended how.

    Runs in the main thread. Raises: ScheduleError when the state cannot be opened.
    """
    state = TickState(state_path)
    runner = Runner({schedule.spec.name: schedule for schedule in schedules}, state, tell)
    # What it would say of missed and overlapping ticks is in the history, and told.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    scheduler = BackgroundScheduler(
        executors={"default": TickExecutor(runner)}, jobstores={"default": TickStore(state)}, timezone=UTC
    )
    scheduler.add_listener(runner.overlapped, EVENT_JOB_MAX_INSTANCES)
    for schedule in schedules:
        spec = schedule.spec
        first_at = spec.next_times(1)[0]
        due = state.settle(spec.name, spec.cron, spec.timezone, first_at.timestamp())
        # Late ticks are judged by `TickExecutor`, which knows the policy.
        scheduler.add_job(
            _placeholder,
            make_trigger(spec.cron, spec.timezone),
            id=spec.name,
            next_run_time=datetime.fromtimestamp(due, UTC),
            coalesce=False,
            misfire_grace_time=None,
            max_instances=1,
        )
        tell(f"{spec.name}: {spec.cron!r} in {spec.timezone}, next at {moment(due)}")
    with _asked_to_stop() as stop:
        runner.recover()
        scheduler.start()
        try:
            while not stop.wait(SWEEP_SECONDS):
                state.beat()
                runner.recover()
                # The clock may have been set, or the machine have slept, while the scheduler waited.
                scheduler.wakeup()
        finally:
            tell("stopping")
            runner.stopping.set()
            scheduler.shutdown(wait=False)
            runner.stop()
    return {"schedules": [schedule.spec.name for schedule in schedules], "ticks": dict(sorted(runner.ended.items()))}


def _placeholder() -> None:
    """APScheduler wants a function; `TickExecutor` starts a process instead."""


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- what APScheduler calls -----------------------------------------------------------------------------------


class TickStore(BaseJobStore):
    """The jobs of this process, with their next times in the shared state.

    APScheduler's own stores keep pickled jobs, which run code when they are read, and overwrite each other's times when
    two schedulers share one.
    """

    def __init__(self, state: TickState) -> None:
        super().__init__()
        self.state = state
        self.jobs: dict[str, Job] = {}

    def lookup_job(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    def get_due_jobs(self, now: datetime) -> list[Job]:
        return [job for job in self.get_all_jobs() if job.next_run_time <= now]

    def get_next_run_time(self) -> datetime | None:
        due = self.state.due(list(self.jobs))
        return datetime.fromtimestamp(due[0][1], UTC) if due else None

    def get_all_jobs(self) -> list[Job]:
        found = []
        for name, next_at in self.state.due(list(self.jobs)):
            job = self.jobs[name]
            job.next_run_time = datetime.fromtimestamp(next_at, UTC)
            found.append(job)
        return found

    def add_job(self, job: Job) -> None:
        self.jobs[job.id] = job

    def update_job(self, job: Job) -> None:
        self.state.advance(job.id, job.next_run_time.timestamp())

    def remove_job(self, job_id: str) -> None:
        if self.jobs.pop(job_id, None) is None:
            raise JobLookupError(job_id)

    def remove_all_jobs(self) -> None:
        self.jobs.clear()


class TickExecutor(BaseExecutor):
    """Claims the newest tick that is due, before its schedule moves on, and has the runner run it."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        ticks = [run_time.timestamp() for run_time in run_times]
        claimed = self.runner.claimed(job.id, ticks)

        def run() -> None:
            try:
                if claimed is not None:
                    self.runner.run(claimed)
            except Exception as error:  # the edge of the thread: a tick that is left open would hold back all others
                self.runner.broken(job.id, error)
            finally:
                self._run_job_success(job.id, [])

        self.runner.pool.submit(run)
