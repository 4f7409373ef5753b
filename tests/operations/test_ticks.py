"""Ticks in a file that schedulers share: claimed once, never overlapping, taken up when a scheduler is gone."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ScheduleError
from pipeline.operations import runner as runner_module
from pipeline.operations.runner import Runner, command_of, seconds_to_end
from pipeline.operations.schedule_file import CommandSchedule, Schedule, load_schedules
from pipeline.operations.ticks import TickState

GONE = 2**22 + 1
"""A process id above the highest that Linux gives."""


@pytest.fixture
def state(tmp_path: Path) -> TickState:
    return TickState(tmp_path / "deep" / "state.db")


def claim_in_turn(path: Path, ticks: int, answers: Any) -> None:
    state = TickState(path)
    answers.put([state.claim(f"schedule-{tick}", float(tick)) for tick in range(ticks)])


def test_of_many_processes_one_claims_each_tick(state: TickState) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=claim_in_turn, args=(state.path, 30, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    claims = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    for tick in zip(*claims, strict=True):
        assert sorted(tick) == ["claimed", "taken", "taken"]


def test_a_tick_waits_for_none_but_its_own_schedule(state: TickState) -> None:
    assert state.claim("a", 1) == "claimed"
    assert state.claim("a", 1) == "taken"
    assert state.claim("a", 2) == "overlapped"
    assert state.claim("b", 2) == "claimed"
    state.change(state.get("a", 1), status="finished")
    assert state.claim("a", 3) == "claimed"
    assert [tick.status for tick in state.history("a")] == ["claimed", "overlapped", "finished"]


def forget_owner(state: TickState, **columns: Any) -> None:
    with sqlite3.connect(state.path) as connection:
        for column, value in columns.items():
            connection.execute(f"UPDATE ticks SET {column} = ?", (value,))


def test_a_claim_of_a_process_that_is_gone_keeps_nobody_waiting(state: TickState) -> None:
    state.claim("a", 1)
    forget_owner(state, owner=GONE)
    assert not state.get("a", 1).is_alive()
    assert state.claim("a", 2) == "claimed"


def test_a_process_id_that_is_used_again_is_another_process(state: TickState) -> None:
    state.claim("a", 1)
    forget_owner(state, owner_started=1.0)
    assert not state.get("a", 1).is_alive()


def test_another_machine_is_known_by_its_heartbeat(state: TickState) -> None:
    state.claim("a", 1)
    forget_owner(state, host="elsewhere")
    assert state.get("a", 1).is_alive()
    forget_owner(state, beat_at=time.time() - 61)
    assert not state.get("a", 1).is_alive()


def test_time_moves_on_and_never_back_until_the_cron_changes(state: TickState) -> None:
    assert state.settle("a", "* * * * *", "UTC", 60) == 60
    state.advance("a", 180)
    state.advance("a", 120)
    assert state.settle("a", "* * * * *", "UTC", 999) == 180
    assert state.settle("a", "0 * * * *", "UTC", 3600) == 3600
    assert state.due(["b"]) == [] and state.due(["a", "b"]) == [("a", 3600.0)]


def runner_of(state: TickState, policy: str, told: list[str]) -> Runner:
    spec = CommandSchedule.model_validate(
        {
            "name": "a",
            "cron": "* * * * *",
            "runs": {"kind": "command", "command": ["true"]},
            "misfire": {"policy": policy, "grace_seconds": 30},
        }
    )
    return Runner({"a": Schedule(Path("a.yaml"), spec)}, state, told.append)


@pytest.mark.parametrize(
    ("policy", "late", "runs"), [("skip", 10, True), ("skip", 100, False), ("run_once", 100, True)]
)
def test_a_late_tick_runs_as_its_policy_says(state: TickState, policy: str, late: float, runs: bool) -> None:
    now = time.time()
    claimed = runner_of(state, policy, []).claimed("a", [now - late])
    assert (claimed is not None) == runs
    assert state.get("a", now - late).status == ("claimed" if runs else "missed")


def test_of_several_ticks_that_passed_the_last_runs_and_the_others_are_told(state: TickState) -> None:
    told: list[str] = []
    now = time.time()
    claimed = runner_of(state, "run_once", told).claimed("a", [now - 300, now - 200, now - 100])
    assert claimed is not None and claimed.tick == now - 100
    missed = state.get("a", now - 200)
    assert missed.status == "missed" and "and 1 before it" in (missed.note or "")
    assert len(told) == 1


@pytest.mark.parametrize(("policy", "becomes"), [("run_once", "finished"), ("skip", "lost")])
def test_a_claim_that_a_killed_scheduler_did_not_start_is_run_or_lost(
    state: TickState, policy: str, becomes: str
) -> None:
    state.claim("a", 1)
    forget_owner(state, owner=GONE)
    runner = runner_of(state, policy, [])
    runner.recover()
    runner.pool.shutdown(wait=True)
    assert state.get("a", 1).status == becomes


def test_a_state_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this is a text, and a long one, that no database begins with")
    with pytest.raises(ScheduleError, match="cannot be opened"):
        TickState(tmp_path / "state.db")


def retraining(folder: Path, runs: str = "{kind: local}", stop_seconds: float = 20) -> Schedule:
    path, conf = folder / "s.yaml", Path("conf/image_vae.yaml").absolute()
    more = f"set: [training.stop_seconds={stop_seconds}]\nruns: {runs}\n"
    path.write_text(f"name: s\nconf: {conf}\ncron: '0 3 * * *'\n{more}")
    (schedule,) = load_schedules([path])
    return schedule


SUBMITTED = "{kind: submit, address: 'http://head:8265'}"


def test_a_submitted_tick_names_the_cluster(tmp_path: Path) -> None:
    words = command_of(retraining(tmp_path, SUBMITTED))
    path = str(tmp_path / "s.yaml")
    assert words[1:] == ["-m", "jobs", "submit", "retrain", path, "--once", "--address", "http://head:8265"]


@pytest.mark.parametrize(
    ("runs", "stop_seconds", "seconds"),
    [("{kind: local}", 20, 35), ("{kind: local}", 60, 75), (SUBMITTED, 20, 60), (SUBMITTED, 60, 100)],
)
def test_a_retraining_that_is_stopped_has_time_for_its_checkpoint(
    runs: str, stop_seconds: float, seconds: float, tmp_path: Path
) -> None:
    assert seconds_to_end(retraining(tmp_path, runs, stop_seconds)) == seconds


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1], "w").close()
time.sleep(600)
"""


def test_each_process_has_its_own_time_when_the_scheduler_is_stopped(
    state: TickState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"cron": "* * * * *", "runs": {"kind": "command", "command": ["true"]}}
    schedules = {"s": retraining(tmp_path, stop_seconds=60)}
    schedules["c"] = Schedule(Path("c.yaml"), CommandSchedule.model_validate({"name": "c", **spec}))
    monkeypatch.setattr(runner_module, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(
        runner_module, "command_of", lambda one: [sys.executable, "-c", SAVES, str(tmp_path / one.spec.name)]
    )
    runner = Runner(schedules, state, lambda _: None)
    for name in schedules:
        assert state.claim(name, 1) == "claimed"
        runner.pool.submit(runner.run, state.get(name, 1))
    deadline = time.monotonic() + 30
    while not all((tmp_path / name).exists() for name in schedules):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runner.stopping.set()
    runner.stop()
    ended = {name: state.get(name, 1) for name in schedules}
    assert (ended["s"].exit_code, ended["s"].answer) == (0, "saved")
    assert ended["c"].exit_code == -signal.SIGKILL
