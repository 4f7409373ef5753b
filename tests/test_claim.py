"""One process at a time trains a run: claims of this machine, of others, of killed processes, and lost ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import claim as claims
from pipeline.claim import FILE, Claim
from pipeline.errors import RunBusyError, StorageError
from pipeline.storage import Store, open_store

HOLDER = """
import sys, time
from pipeline.claim import Claim
from pipeline.storage import open_store
with Claim(open_store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.2)
    return open_store(str(tmp_path))


def test_a_run_is_claimed_by_one_process_and_given_up_at_the_end(run: Store) -> None:
    with Claim(run):
        with pytest.raises(RunBusyError, match=rf"process {os.getpid()} on .* has this run; wait for it or stop it"):
            Claim(run).__enter__()
        assert run.exists(FILE)
    assert not run.exists(FILE)
    with pytest.raises(ValueError, match="the cause"), Claim(run):
        raise ValueError("the cause")
    assert not run.exists(FILE)


def test_a_killed_process_of_this_machine_holds_nothing(run: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run.root], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match=f"process {holder.pid} on"):
            Claim(run).__enter__()
        holder.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and its number is still there
        with Claim(run):
            assert run.read_json(FILE)["process"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_number_that_another_process_has_now_holds_nothing(run: Store) -> None:
    with Claim(run):
        held = run.read_json(FILE)
    run.write_json({**held, "started": held["started"] - 1}, FILE)
    with Claim(run) as claim:
        claim.check()


def of_another_machine(run: Store, **values: Any) -> None:
    held = {"id": "other", "machine": "another", "host": "another", "process": os.getpid(), "started": 0.0, "beats": 1}
    run.write_json({**held, **values}, FILE)


def test_another_machine_is_waited_for_until_it_is_seen_to_go_on_or_not(run: Store) -> None:
    of_another_machine(run)
    said: list[str] = []
    with Claim(run, lambda stage, done, total, note: said.append(note)):
        assert run.read_json(FILE)["id"] != "other"
    assert said[0] == "another machine, another, had this run: waiting whether it goes on"

    def goes_on(*_: object) -> None:
        of_another_machine(run, beats=2)

    of_another_machine(run)
    with pytest.raises(RunBusyError, match=f"process {os.getpid()} on another has this run"):
        Claim(run, goes_on).__enter__()

    of_another_machine(run)
    with Claim(run, lambda *_: run.delete_file(FILE)) as claim:
        claim.check()


def test_who_lost_a_claim_learns_it_and_leaves_it_to_the_other(run: Store) -> None:
    ended: list[bool] = []
    with Claim(run, lost=lambda: ended.append(True)) as claim:
        beats = run.read_json(FILE)["beats"]
        while run.read_json(FILE)["beats"] == beats:
            claim._over.wait(0.05)
        of_another_machine(run)
        claim._thread.join(30)
        assert ended == [True]
        with pytest.raises(RunBusyError, match="on another has this run"):
            claim.check()
    assert run.read_json(FILE)["id"] == "other"


def test_a_claim_that_cannot_be_read_is_not_nobodys(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_machine(run)
    read, answers = Store.read_bytes, iter([True, False, False])

    def now_and_then(store: Store, *parts: str) -> bytes:
        if next(answers, True):
            return read(store, *parts)
        of_another_machine(run, beats=2)
        raise StorageError("no answer")

    monkeypatch.setattr(Store, "read_bytes", now_and_then)
    with pytest.raises(RunBusyError, match="on another has this run"):
        Claim(run).__enter__()
    answers = iter([False])
    with pytest.raises(StorageError, match="no answer"):
        Claim(run).__enter__()
    assert run.read_json(FILE)["id"] == "other"


def test_of_a_lost_run_no_end_is_recorded(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import workflow
    from pipeline.outcome import Stopwatch
    from pipeline.progress import silent
    from pipeline.release import recorder, tracking
    from tests.conftest import cell_spec

    finished: list[str] = []
    monkeypatch.setattr(tracking, "start_or_continue_run", lambda *_: "run")
    monkeypatch.setattr(recorder.RunRecorder, "finish", lambda self, status: finished.append(status))

    def train() -> None:
        prepared: Any = SimpleNamespace(key="p")
        at: Any = SimpleNamespace(uri="nowhere")
        workflow._train_and_after(
            cell_spec("vae", "image"), run, prepared, at, "run-1", {}, silent, Stopwatch(None), claim
        )

    def stages(*_: object) -> None:
        claim.lost_to = lost
        raise SystemExit(143)

    monkeypatch.setattr(workflow, "_stages", stages)
    claim, lost = Claim(run), None
    with pytest.raises(SystemExit):
        train()
    assert finished == ["KILLED"]
    lost = {"process": 1, "host": "another"}
    with pytest.raises(RunBusyError, match="process 1 on another"):
        train()
    assert finished == ["KILLED"]
