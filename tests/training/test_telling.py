"""What a driver is told of a training's warnings: each once, whoever trains, and all of them at the end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NonFiniteLossError
from pipeline.progress import WARNING, silent
from pipeline.storage import open_store
from pipeline.training.following import Follower
from pipeline.training.in_process import train_in_process
from pipeline.training.session import Session
from tests.training.digits import digits_prepared, digits_spec


class Notes:
    """Progress that keeps the warnings it was told, and the last line beside them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.line = ""
        self.came = threading.Condition()

    def __call__(self, stage: str, done: int, total: int | None, note: str) -> None:
        with self.came:
            if stage == WARNING:
                self.warnings.append(note)
            else:
                self.line = note
            self.came.notify()

    def wait_for_line(self, pattern: str) -> None:
        with self.came:
            assert self.came.wait_for(lambda: re.fullmatch(pattern, self.line), 60), self.line

    def wait_for(self, warnings: list[str]) -> None:
        with self.came:
            assert self.came.wait_for(lambda: self.warnings == warnings, 60), self.warnings


def test_a_training_in_this_process_says_a_warning_once_and_tells_all(tmp_path: Path) -> None:
    spec = digits_spec("vae", steps=60, validate_every=20, checkpoint_every=20, own={"beta": 1e4})
    notes = Notes()
    store = open_store(str(tmp_path))
    trained = train_in_process(spec, digits_prepared(spec), store, "a-run", None, None, notes)
    (said,) = notes.warnings
    assert said.startswith("Posterior collapse (posterior_collapse) at step 40: the KL is ")
    (told,) = trained.warnings
    assert (told["kind"], told["step"]) == ("posterior_collapse", 40)
    # Called again, it trains no more and says nothing again, and still knows.
    again = train_in_process(spec, digits_prepared(spec), store, "a-run", None, None, notes)
    assert len(notes.warnings) == 1 and again.warnings == trained.warnings


def test_what_a_worker_says_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"step": 1, "steps": 10, "seconds": 0.0, "metrics": {}, "warnings": ["a"]}
    monkeypatch.setattr("pipeline.training.worker.told", lambda key: told)
    monkeypatch.setattr("pipeline.training.following.POLL_SECONDS", 0.01)
    told["first_step_at"] = time.time()
    notes = Notes()
    with Follower("a-run", 10, None, notes):
        notes.wait_for(["a"])
        told["warnings"] = ["a", "b"]
    assert notes.warnings == ["a", "b"]


def test_what_restarted_workers_say_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    told: dict[str, Any] = {"step": 1, "steps": 10, "seconds": 0.0, "metrics": {}, "warnings": ["a", "b"]}
    told["first_step_at"] = now
    monkeypatch.setattr("pipeline.training.worker.told", lambda key: told)
    monkeypatch.setattr("pipeline.training.following.POLL_SECONDS", 0.01)
    notes = Notes()
    with Follower("a-run", 10, None, notes) as follower:
        notes.wait_for(["a", "b"])
        told = {**told, "first_step_at": now + 1, "warnings": ["c"]}
        notes.wait_for(["a", "b", "c"])
        told = {**told, "first_step_at": now + 2, "warnings": []}
        told = {**told, "warnings": ["d"]}
        notes.wait_for(["a", "b", "c", "d"])
    assert notes.warnings == ["a", "b", "c", "d"]
    assert follower.first_step_at == now, "of the first start, to which the launch is counted"


def test_a_training_that_waits_says_what_the_cluster_is_in_want_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    want = ""
    monkeypatch.setattr("pipeline.training.worker.told", lambda key: told)
    monkeypatch.setattr("pipeline.training.following.POLL_SECONDS", 0.01)
    notes = Notes()
    with Follower("a-run", 10, None, notes, lambda: want):
        notes.wait_for_line(r"waiting for Ray Train's workers, \d+ s")
        want = "2 workers wanted"
        notes.wait_for_line(r"waiting for Ray Train's workers, \d+ s: 2 workers wanted")
        want = ""
        notes.wait_for_line(r"waiting for Ray Train's workers, \d+ s")
        told = {"step": 1, "steps": 10, "seconds": 0.0, "metrics": {"train/loss": 2.0}, "first_step_at": time.time()}
        notes.wait_for_line("loss 2")
        # A node is lost, and with it a worker: what was told last stays there.
        want = "1 worker wanted"
        notes.wait_for_line(r"waiting for Ray Train's workers, \d+ s: 1 worker wanted")
        want = ""
        notes.wait_for_line("loss 2")
    assert notes.warnings == ["2 workers wanted", "1 worker wanted"], "each once, and in full"


def test_a_training_by_epochs_that_is_stopped_says_of_how_many_steps_it_was(tmp_path: Path) -> None:
    spec = digits_spec("vae", steps=10_000, epochs=2, num_workers=0, threads_per_worker=1)
    said: list[tuple[str, int, int | None]] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        if not said:
            os.kill(os.getpid(), signal.SIGTERM)
        said.append((stage, done, total))

    with pytest.raises(SystemExit):
        train_in_process(spec, digits_prepared(spec), open_store(str(tmp_path)), "a-run", None, None, progress)
    assert said == [("train", 10, 63), ("stopped", 11, 63)], "1,000 examples in batches of 32, twice"


def test_why_training_failed_is_raised_though_mlflow_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session, hooks: Any) -> None:
        raise NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(Session, "run", fail)
    spec = digits_spec("vae", num_workers=0, threads_per_worker=1)
    arguments = (digits_prepared(spec), open_store(str(tmp_path)), "a-run", f"sqlite:///{tmp_path}/gone.db", "a-run-id")
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        train_in_process(spec, *arguments, silent)
