"""The scheduler with real processes: each tick once whoever runs, killed and started again, stopped without a trace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.operations.ticks import Tick, TickState
from tests.command_line import run_here

TICK = "import os, sys, json; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); print(json.dumps({'ok': True}))"
WAITER = """
import os, sys, time
open(sys.argv[1], 'a').write('x')
until = time.time() + 600
while not os.path.exists(f'{sys.argv[2]}-{os.getpid()}') and time.time() < until:
    time.sleep(0.02)
print('{"waited": 1}')
"""
"""A process that says that it is there, and ends when it is told to by a file with its number."""


class Home:
    """A folder with schedules and their state; ends every scheduler that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.mark = folder, folder / "state.db", folder / "marks.txt"
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, name: str, command: list[str], cron: str = "*/2 * * * * *", **keys: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        runs = {"kind": "command", "command": command}
        path.write_text(yaml.safe_dump({"name": name, "cron": cron, "runs": runs, **keys}))
        return path

    def start(self, *files: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "schedule", *map(str, files), "--state", str(self.state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer

    def history(self, name: str = "tick") -> list[Tick]:
        return TickState(self.state).history(name, 1000)

    def wait_for(self, seen: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 90
        while not seen():
            assert time.monotonic() < deadline, f"never seen: {what}; {self.history()}"
            time.sleep(0.05)

    def finished(self, name: str = "tick") -> list[Tick]:
        return [tick for tick in self.history(name) if tick.status == "finished"]

    def marks(self) -> list[str]:
        return self.mark.read_text().split() if self.mark.exists() else []


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    for process in home.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_two_schedulers_run_each_tick_once(home: Home) -> None:
    file = home.write("tick", [sys.executable, "-c", TICK, str(home.mark)])
    first, second = home.start(file), home.start(file)
    home.wait_for(lambda: len(home.finished()) >= 4, "four ticks")
    answers = [home.stop(first), home.stop(second)]
    ran = [tick for tick in home.history() if tick.child is not None]
    assert len({tick.tick for tick in ran}) == len(ran) >= 4
    # Each process that ran is that of one tick, and each tick's process ran once.
    assert sorted(home.marks()) == sorted(str(tick.child) for tick in ran)
    assert sum(answer["ticks"].get("finished", 0) for answer in answers) == len(home.finished())
    times = sorted(tick.tick for tick in ran)
    assert all(time % 2 == 0 for time in times)
    assert all(json.loads(tick.answer or "") == {"ok": True} and tick.exit_code == 0 for tick in home.finished())


def test_a_scheduler_that_was_killed_goes_on_when_started_again(home: Home) -> None:
    file = home.write("tick", [sys.executable, "-c", TICK, str(home.mark)])
    first = home.start(file)
    home.wait_for(lambda: len(home.finished()) >= 2, "two ticks")
    first.kill()
    first.wait()
    before = {tick.tick for tick in home.history() if tick.status == "finished"}
    time.sleep(5)  # two ticks pass with no scheduler there

    second = home.start(file)
    home.wait_for(lambda: len(home.finished()) >= len(before) + 2, "two ticks after the restart")
    home.stop(second)
    ticks = [tick for tick in home.history() if tick.child is not None]
    assert len({tick.tick for tick in ticks}) == len(ticks)
    assert sorted(home.marks()) == sorted(str(tick.child) for tick in ticks)
    assert before < {tick.tick for tick in home.finished()}
    # Of those that passed, the last was run at once (the default policy), and the others are told as missed.
    assert any(tick.status == "missed" for tick in home.history())


def test_the_process_of_a_killed_scheduler_is_waited_for_and_not_started_twice(home: Home) -> None:
    file = home.write("tick", [sys.executable, "-c", WAITER, str(home.mark), str(home.folder / "end")])
    first = home.start(file)
    home.wait_for(lambda: any(tick.status == "running" for tick in home.history()), "a running tick")
    first.kill()
    first.wait()
    (orphan,) = [tick for tick in home.history() if tick.status == "running"]
    assert orphan.child_is_alive()

    second = home.start(file)
    home.wait_for(lambda: any(tick.status == "overlapped" for tick in home.history()), "a tick held back")
    assert home.marks() == ["x"]
    (home.folder / f"end-{orphan.child}").touch()
    home.wait_for(lambda: bool(home.finished()), "the end of the first")
    (ended,) = home.finished()
    assert (ended.tick, ended.answer, ended.exit_code) == (orphan.tick, '{"waited": 1}', None)
    home.stop(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_stop_ends_what_runs_and_leaves_nothing(home: Home, number: signal.Signals) -> None:
    file = home.write("tick", [sys.executable, "-c", WAITER, str(home.mark), str(home.folder / "end")])
    scheduler = home.start(file)
    home.wait_for(lambda: any(tick.status == "running" for tick in home.history()) and bool(home.marks()), "a process")
    children = psutil.Process(scheduler.pid).children(recursive=True)
    assert children
    answer = home.stop(scheduler, number)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert answer["ticks"]["interrupted"] == 1
    assert not TickState(home.state).open_ticks(["tick"])


def test_a_command_that_fails_is_told_with_its_code_and_the_schedule_goes_on(home: Home) -> None:
    file = home.write("tick", [sys.executable, "-c", 'print(\'{"error": "no"}\'); raise SystemExit(2)'], "* * * * * *")
    other = home.write("gone", ["/no/such/command"], "* * * * * *")
    scheduler = home.start(file, other)
    home.wait_for(lambda: len([t for t in home.history() if t.status == "failed"]) >= 2, "two failures")
    home.wait_for(lambda: len([t for t in home.history("gone") if t.status == "failed"]) >= 1, "a failed start")
    home.stop(scheduler)
    assert {tick.exit_code for tick in home.history() if tick.status == "failed"} == {2}
    assert "No such file" in (home.history("gone")[0].answer or "")


@pytest.mark.ray
def test_a_tick_is_a_real_retraining(home: Home, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    corpus = home.folder / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("\n".join(f"line {number} of a small text" for number in range(400)))
    file = home.folder / "nightly.yaml"
    settings = [
        f"storage={home.folder / 'storage'}",
        "data.source.kind=lines",
        f"data.source.path={corpus}",
        "data.codec.length=16",
        "model.backbone.hidden_size=8",
        "training.steps=3",
        "training.batch_size=4",
        "training.num_workers=0",
    ]
    conf = str(Path("conf/text_rnn.yaml").absolute())
    tree = {"name": "nightly", "conf": conf, "cron": "*/2 * * * * *", "runs": {"kind": "local"}, "set": settings}
    file.write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    scheduler = home.start(file)
    deadline = time.monotonic() + 240
    while len(home.finished("nightly")) < 2:
        assert scheduler.poll() is None and time.monotonic() < deadline, home.history("nightly")
        time.sleep(0.2)
    home.stop(scheduler)
    *_, second, first = home.finished("nightly")
    assert [json.loads(tick.answer or "")["decision"] for tick in (first, second)] == ["first", "unchanged"]


def test_list_tells_the_next_times_and_writes_nothing(home: Home) -> None:
    file = home.write("tick", ["true"], cron="0 3 * * mon", timezone="Europe/Berlin")
    code, answer, errors = run_here("schedule", str(file), "--state", str(home.state), "--list")
    assert code == 0, errors
    (listed,) = answer["schedules"]
    assert listed["name"] == "tick" and len(listed["next"]) == 3
    assert all("T03:00:00+0" in moment for moment in listed["next"])
    assert not home.state.exists()
