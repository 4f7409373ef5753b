"""What a training worker answers, and the driver makes of it: in this process, with Ray's part played."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyarrow import fs as pafs

from pipeline.errors import NonFiniteLossError, StorageError, TrackingError
from pipeline.spec import RunSpec
from pipeline.storage import Store, open_store
from pipeline.training import worker
from pipeline.training.launch import train_with_ray
from pipeline.training.session import Session
from pipeline.training.shelf import Shelf
from pipeline.training.worker import WorkerConfig, train_worker
from tests.conftest import cell_spec, prepared_in_memory
from tests.training.key_value_store import kept_here

RUN = "a-run"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is the only worker of a run."""
    kept_here(monkeypatch)
    place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: place)
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(worker, "tell", lambda key, values: None)
    yield
    torch.set_flush_denormal(False)


def train(spec: RunSpec, storage: Path, monkeypatch: pytest.MonkeyPatch, tracking: str | None = None) -> dict[str, Any]:
    monkeypatch.setattr(worker, "open_prepared", lambda store, key: prepared_in_memory(spec))
    run_id = None if tracking is None else "a-run-id"
    return train_worker(WorkerConfig(spec.as_dict(), str(storage), "prepared", RUN, tracking, run_id).as_dict())


def spec_of(**training: Any) -> RunSpec:
    return cell_spec("vae", "image", threads_per_worker=1, use_gpu=False, **training)


@pytest.mark.usefixtures("alone")
def test_a_worker_tells_the_steps_that_its_limit_by_epochs_comes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = train(spec_of(steps=1000, epochs=2), tmp_path, monkeypatch)
    assert (answer["step"], answer["steps"]) == (10, 10), "40 examples in batches of 8, twice"


@pytest.mark.parametrize(
    ("asked_for", "local_workers", "threads"), [(None, 1, 8), (None, 2, 4), (None, 3, 2), (None, 16, 1), (3, 2, 3)]
)
def test_workers_share_the_processors_of_their_node(
    asked_for: int | None, local_workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "processors", lambda: 8)
    before = torch.get_num_threads()
    try:
        assert worker.set_threads(asked_for, local_workers) == threads
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("asked_for", "threads"), [(None, 3), (2, 2)])
def test_a_worker_trains_with_its_share_of_the_processors_or_as_many_threads_as_asked_for(
    asked_for: int | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run(session: Session, hooks: Any) -> None:
        seen.append(torch.get_num_threads())
        raise NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(worker.ray.train.get_context(), "get_local_world_size", lambda: 2)
    monkeypatch.setattr(worker, "processors", lambda: 6)
    monkeypatch.setattr(Session, "run", run)
    before = torch.get_num_threads()
    try:
        train(cell_spec("vae", "image", threads_per_worker=asked_for, use_gpu=False), tmp_path, monkeypatch)
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


@pytest.mark.usefixtures("alone")
def test_rank_0_records_what_its_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorders: list[Any] = []

    def run(session: Session, hooks: Any) -> None:
        recorders.append(hooks.recorder)
        raise NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(Session, "run", run)
    train(spec_of(), tmp_path, monkeypatch, f"sqlite:///{tmp_path}/gone.db")
    (recorder,) = recorders
    assert recorder.system_metrics


@pytest.mark.usefixtures("alone")
def test_why_training_failed_is_told_though_mlflow_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session, hooks: Any) -> None:
        hooks.recorder.log_metrics({"train/loss": 1.0}, 1)
        raise NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(Session, "run", fail)
    answer = train(spec_of(), tmp_path, monkeypatch, f"sqlite:///{tmp_path}/gone.db")
    assert answer == {
        "failure": "NonFiniteLossError",
        "message": "the loss is nan; last checkpoint in this start: none",
    }


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("when", ["find", "run"])
def test_a_bucket_that_does_not_answer_is_for_ray_to_try_again_and_a_full_disk_is_not(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("it cannot be used")

    monkeypatch.setattr(*((Shelf, "find") if when == "find" else (Session, "run")), fail)
    assert train(spec_of(), tmp_path, monkeypatch)["failure"] == "StorageError"
    filesystem = pafs._MockFileSystem()
    monkeypatch.setattr(worker, "open_store", lambda uri: Store(filesystem, "bucket", uri))
    with pytest.raises(StorageError, match="it cannot be used"):
        train(spec_of(), tmp_path, monkeypatch)


@pytest.mark.usefixtures("alone")
def test_metrics_that_mlflow_does_not_take_fail_a_training_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrackingError, match=r"gone\.db"):
        train(spec_of(), tmp_path, monkeypatch, f"sqlite:///{tmp_path}/gone.db")


def test_a_driver_that_is_stopped_says_of_how_many_steps_the_worker_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_here(monkeypatch)
    trains = threading.Event()
    said: list[tuple[str, int, int | None]] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        said.append((stage, done, total))
        if done:
            trains.set()

    class Trainer:
        def __init__(self, *_: object, **__: object) -> None:
            """Nothing is started."""

        def fit(self) -> Any:
            assert trains.wait(30)
            os.kill(os.getpid(), signal.SIGTERM)
            return SimpleNamespace(return_value={"step": 5, "steps": 10, "seconds": 1.0}, path="nowhere")

    told = {"step": 4, "steps": 10, "seconds": 1.0, "metrics": {}, "first_step_at": time.time() + 1}
    monkeypatch.setattr(worker, "told", lambda key: told)
    monkeypatch.setattr("pipeline.ray_session.node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr("pipeline.training.lean_trainer.LeanTorchTrainer", Trainer)
    spec = spec_of(steps=1000, epochs=2)
    with pytest.raises(SystemExit):
        train_with_ray(spec, prepared_in_memory(spec), open_store(str(tmp_path)), RUN, None, None, progress)
    assert said[-1] == ("stopped", 5, 10)
