"""Checkpoints by the clock, and beside the training."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException

from pipeline.errors import StorageError, TrackingError
from pipeline.release import recorder as recording
from pipeline.release.recorder import RunRecorder
from pipeline.spec import RunSpec
from pipeline.storage import open_store
from pipeline.training import saving
from pipeline.training.checkpoint import Position, read_state
from pipeline.training.in_process import LocalHooks, train_in_process
from pipeline.training.saving import Saver
from pipeline.training.shelf import Shelf
from tests.conftest import prepared_in_memory
from tests.saved_checkpoints import local_checkpoints
from tests.training.cut_off_runs import folders, session_of, spec_of, train

# --- by the clock --------------------------------------------------------------------------------------------


class Ticking:
    """A clock that goes on by a second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    perf_counter = monotonic


class Noting(LocalHooks):
    """Hooks that keep the steps of reports and of checkpoints."""

    def __init__(self, spec: RunSpec, folder: Path | None = None) -> None:
        super().__init__(spec, folder)
        self.reported: list[int] = []
        self.saved: list[int] = []
        self.seconds: list[float] = []

    def report(self, at: Position, metrics: dict[str, float]) -> None:
        super().report(at, metrics)
        self.reported.append(at.step)
        self.seconds.append(metrics["train/checkpoint_seconds"])

    def checkpoint(self, at: Position, stepper: Any) -> None:
        super().checkpoint(at, stepper)
        self.saved.append(at.step)


def test_checkpoints_come_by_the_clock_at_reports_and_change_neither_reports_nor_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rare = {"steps": 20, "report_every": 2, "checkpoint_every": 1000, "validate_every": 10}
    plain, without = session_of(spec_of(**rare)), Noting(spec_of(**rare))
    plain.run(without)
    assert without.saved == [20]

    ticking = Ticking()
    for module in ("clock", "loop"):
        monkeypatch.setattr(f"pipeline.training.{module}.time", ticking)
    spec = spec_of(**rare, checkpoint_minutes=0.2)
    session, hooks = session_of(spec), Noting(spec)
    session.run(hooks)
    assert 2 <= len(hooks.saved) < len(hooks.reported) and hooks.saved[-1] == 20
    assert set(hooks.saved) < set(hooks.reported) and hooks.reported == without.reported
    # What a checkpoint cost is in the report after it.
    assert [step for step, seconds in zip(hooks.reported, hooks.seconds, strict=True) if seconds > 0] == [
        hooks.reported[hooks.reported.index(step) + 1] for step in hooks.saved[:-1]
    ]
    for name, value in plain.stepper.state.weights().items():
        assert torch.equal(session.stepper.state.weights()[name], value)


def test_a_checkpoint_by_steps_puts_off_the_one_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    for module in ("clock", "loop"):
        monkeypatch.setattr(f"pipeline.training.{module}.time", ticking)
    spec = spec_of(steps=20, report_every=1, checkpoint_every=4, validate_every=1000, checkpoint_minutes=1.0)
    hooks = Noting(spec)
    session_of(spec).run(hooks)
    assert hooks.saved == list(range(4, 21, 4))


# --- beside the training -------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until the event is set."""
    released, write = threading.Event(), saving.write_state

    def late(*arguments: Any) -> None:
        assert released.wait(30)
        write(*arguments)

    monkeypatch.setattr(saving, "write_state", late)
    yield released
    released.set()


def test_training_goes_on_while_a_checkpoint_of_then_is_written(held: threading.Event, tmp_path: Path) -> None:
    spec = spec_of(steps=6, checkpoint_every=3, report_every=1)
    session, steps, now = session_of(spec), [], {}

    class Watching(LocalHooks):
        def report(self, at: Position, metrics: dict[str, float]) -> None:
            super().report(at, metrics)
            steps.append((at.step, local_checkpoints(tmp_path)))
            if at.step == 3:
                now.update({name: value.clone() for name, value in session.stepper.state.weights().items()})
            if at.step == 5:
                held.set()

    hooks = Watching(spec, tmp_path, beside=True)
    session.run(hooks)
    assert steps[:5] == [(step, []) for step in range(1, 6)]
    hooks.close()
    first, last = local_checkpoints(tmp_path)
    again = session_of(spec, first)
    assert again.start.step == 3 and read_state(last)["step"] == 6
    for name, value in now.items():
        assert torch.equal(again.stepper.state.weights()[name], value), f"{name} is not of step 3"


def test_a_second_checkpoint_waits_for_the_first(held: threading.Event, tmp_path: Path) -> None:
    spec = spec_of(steps=2)
    session, shelf = session_of(spec), Shelf(open_store(str(tmp_path)), 5)
    saver = Saver(shelf, spec)
    saver.save(session.stepper, Position(1))
    second = threading.Thread(target=saver.save, args=(session.stepper, Position(2)))
    second.start()
    second.join(0.2)
    assert second.is_alive() and shelf.steps() == []
    held.set()
    second.join(30)
    saver.wait()
    assert shelf.steps() == [1, 2] and saver.last == 2


def test_a_checkpoint_that_cannot_be_written_beside_the_training_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.training.checkpoint.save_file", full)
    spec = spec_of(steps=10_000, checkpoint_every=2, report_every=2)
    with pytest.raises(StorageError, match=r"the checkpoint of step 2 cannot be written: .*No space left"):
        train(spec, tmp_path)
    assert folders(tmp_path) == []


# --- while MLflow does not answer ----------------------------------------------------------------------------


class Server:
    """Stands for an MLflow server, of which a run's points are left."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int]] = []
        self.answers = threading.Event()
        self.refuses = False

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        if self.refuses:
            raise MlflowException("the server is being restarted")
        assert self.answers.wait(30)
        self.points.extend((metric.key, metric.step) for metric in metrics)

    def get_run(self, run_id: str) -> Any:
        last: dict[str, int] = {}
        for key, step in self.points:
            last[key] = max(step, last.get(key, -1))
        seen = [SimpleNamespace(key=key, step=step) for key, step in last.items()]
        return SimpleNamespace(data=SimpleNamespace(_metric_objs=seen), info=SimpleNamespace(start_time=0))

    def steps(self, key: str) -> list[int]:
        return [step for name, step in self.points if name == key]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(recording, "connect", lambda uri, tries: server)
    monkeypatch.setattr(recording, "_system_monitors", lambda: [])
    return server


def test_a_checkpoint_does_not_wait_for_mlflow(server: Server, tmp_path: Path) -> None:
    spec = spec_of(steps=4, checkpoint_every=2, report_every=1)
    recorder = RunRecorder("http://tracking", "a-run-id", send_every_seconds=0.01)
    hooks = LocalHooks(spec, tmp_path, recorder, beside=True)

    def work() -> None:
        session_of(spec).run(hooks)
        hooks.close()

    training = threading.Thread(target=work, daemon=True)
    training.start()
    training.join(20)
    assert not training.is_alive() and len(local_checkpoints(tmp_path)) == 2
    assert server.points == []
    server.answers.set()
    recorder.close()
    assert server.steps("train/loss") == [1, 2, 3, 4]


def test_what_mlflow_did_not_get_of_a_process_comes_from_the_one_that_goes_on(server: Server, tmp_path: Path) -> None:
    server.answers.set()
    spec = spec_of(steps=12, checkpoint_every=4, report_every=2, validate_every=12)

    def run(at: int | None = None) -> Any:
        def progress(stage: str, done: int, total: int | None, note: str) -> None:
            server.refuses = server.refuses or (stage == "train" and done == at)

        arguments = spec, prepared_in_memory(spec), open_store(str(tmp_path)), "run", "http://tracking", "an-id"
        return train_in_process(*arguments, progress)

    with pytest.raises(TrackingError, match="being restarted"):
        run(at=6)
    server.refuses = False
    assert server.steps("train/loss") in ([], [2], [2, 4], [2, 4, 6])
    assert run().step == 12
    assert server.steps("train/loss") == [2, 4, 6, 8, 10, 12]
