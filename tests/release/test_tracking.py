from __future__ import annotations

import json
import os
import pickle
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import tiny_spec

from pipeline.errors import TrackingError
from pipeline.release import recorder as recorders
from pipeline.release.recorder import RunRecorder
from pipeline.release.tracking import (
    Tracking,
    connect,
    metric_history,
    open_tracking,
    resolve_uri,
    start_or_continue_run,
    versions,
)
from pipeline.storage import open_store

SPEC = tiny_spec("image")


def start(tracking: Tracking, run_key: str) -> str:
    return start_or_continue_run(tracking, SPEC.name, "a run", run_key, {"purpose": "test"})


def history(tracking: Tracking, run_id: str, key: str) -> list[tuple[int, float]]:
    points = connect(tracking.uri).get_metric_history(run_id, key)
    return [(point.step, point.value) for point in points]


# --- where --------------------------------------------------------------------------------------------------


def test_the_default_store_is_absolute_and_in_the_storage(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(open_store("storage")) == f"sqlite:///{tmp_path}/storage/mlflow.db"
    assert Path(tracking.uri.removeprefix("sqlite:///")).is_file()
    assert tracking.artifact_location == str(Path(tracking.uri.removeprefix("sqlite:///")).with_name("mlartifacts"))


def test_the_spec_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(store) == "http://tracking:5000"
    assert resolve_uri(store, "sqlite:////elsewhere/mlflow.db") == "sqlite:////elsewhere/mlflow.db"


def test_opening_twice_gives_the_same_experiment(tracking: Tracking) -> None:
    spec = tiny_spec("image", tracking={"uri": tracking.uri})
    assert open_tracking(spec, open_store(os.path.dirname(tracking.artifact_location))) == tracking


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_tracking_uri_says_what_to_write(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match="sqlite:///"):
        resolve_uri(open_store(str(tmp_path)), uri)


def test_a_server_that_is_not_there_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    spec = tiny_spec("image", tracking={"uri": "http://127.0.0.1:9"})
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9: MLflow does not answer"):
        open_tracking(spec, open_store(str(tmp_path)))
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_database_that_is_not_there_is_an_error_without_the_password() -> None:
    with pytest.raises(TrackingError, match="the database does not answer") as caught:
        connect("postgresql://me:secret@127.0.0.1:9/mlflow")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, " * 100)
    with pytest.raises(TrackingError, match="cannot be opened: file is not a database"):
        connect(f"sqlite:///{tmp_path}/mlflow.db", create=True)


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="there is no such file"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_experiment_says_how_to_restore_it(tracking: Tracking) -> None:
    client = connect(tracking.uri)
    client.delete_experiment(client.create_experiment("gone"))
    spec = tiny_spec("image", tracking={"uri": tracking.uri, "experiment": "gone"})
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        open_tracking(spec, open_store(os.path.dirname(tracking.artifact_location)))


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_that_did_not_finish_is_continued_and_one_that_did_is_not(tracking: Tracking) -> None:
    first = start(tracking, "key-a")
    assert start(tracking, "key-a") == first
    RunRecorder(tracking.uri, first).finish("FAILED")
    assert start(tracking, "key-a") == first
    client = connect(tracking.uri)
    assert client.get_run(first).info.status == "RUNNING"
    assert start(tracking, "key-b") != first
    RunRecorder(tracking.uri, first).finish("FINISHED")
    assert start(tracking, "key-a") != first
    assert client.get_run(first).data.tags["purpose"] == "test"


def test_a_continued_run_repeats_no_step(tracking: Tracking) -> None:
    run_id = start(tracking, "resumed")
    recorder = RunRecorder(tracking.uri, run_id)
    for step in range(1, 6):
        recorder.log_metrics({"train/loss": step}, step)
    recorder.log_metrics({"validation/loss": 4.0}, 4)
    recorder.close()
    again = RunRecorder(tracking.uri, run_id)  # from a checkpoint of step 3
    for step in range(4, 8):
        again.log_metrics({"train/loss": step}, step)
        again.log_metrics({"validation/loss": float(step)}, step)
    again.close()
    assert [step for step, _ in history(tracking, run_id, "train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, _ in history(tracking, run_id, "validation/loss")] == [4, 5, 6, 7]


def test_the_history_of_a_run_has_its_losses_and_the_parts_of_its_time(tracking: Tracking) -> None:
    run_id = start(tracking, "run-history")
    recorder = RunRecorder(tracking.uri, run_id)
    for step in (10, 20):
        recorder.log_metrics({"train/loss": 1.0, "time/forward_seconds": 0.5, "system/cpu": 3.0}, step)
    recorder.close()
    row = {"train/loss": 1.0, "time/forward_seconds": 0.5}
    assert metric_history(tracking.uri, run_id) == [{"step": 10.0, **row}, {"step": 20.0, **row}]


def test_more_points_than_one_request_takes_all_arrive(tracking: Tracking) -> None:
    run_id = start(tracking, "many")
    recorder = RunRecorder(tracking.uri, run_id)
    for step in range(800):
        recorder.log_metrics({"train/loss": 1.0, "train/examples_per_second": 2.0}, step)
    recorder.finish("FINISHED")
    assert len(history(tracking, run_id, "train/loss")) == 800
    assert connect(tracking.uri).get_run(run_id).info.status == "FINISHED"


def test_points_wait_while_mlflow_refuses_them(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    run_id = start(tracking, "patient")
    recorder = RunRecorder(tracking.uri, run_id)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise MlflowException("the server is being restarted")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    recorder.log_metrics({"train/loss": 1.0}, 1)
    with pytest.raises(TrackingError, match="being restarted"):
        recorder.flush()
    monkeypatch.undo()
    recorder.close()
    assert history(tracking, run_id, "train/loss") == [(1, 1.0)]


def test_a_batch_is_tried_once_and_at_the_end_some_times_more(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    log_batch, seen = MlflowClient.log_batch, []

    def look(*arguments: Any, **options: Any) -> None:
        seen.append((os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
        log_batch(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", look)
    recorder = RunRecorder(tracking.uri, start(tracking, "tries"))
    recorder.log_metrics({"train/loss": 1.0}, 1)
    recorder.flush()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    recorder.log_metrics({"train/loss": 1.0}, 2)
    recorder.close()
    assert seen == [("0", "10"), ("4", "300")]
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"


def test_who_connects_at_the_end_is_as_patient(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(uri: str, tries: int) -> Any:
        seen.append(tries)
        return connect(uri, tries=tries)

    monkeypatch.setattr(recorders, "connect", look)
    recorder = RunRecorder(tracking.uri, start(tracking, "late"))
    recorder._waiting.append(("train/loss", 1.0, 0, 1))
    recorder.close()
    assert seen == [5]


def test_other_requests_have_the_tries_that_the_user_set(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    hangs, answers, seen = threading.Event(), threading.Event(), []

    def hang(*_: Any, **__: Any) -> None:
        hangs.set()
        assert answers.wait(30)

    def look(*_: Any, **__: Any) -> None:
        seen.append((os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"), answers.is_set()))

    monkeypatch.setattr(MlflowClient, "log_batch", hang)
    monkeypatch.setattr(MlflowClient, "set_tag", look)
    recorder = RunRecorder(tracking.uri, start(tracking, "patience"), send_every_seconds=0.01)
    recorder.log_metrics({"train/loss": 1.0}, 1)
    assert hangs.wait(30)
    threading.Timer(0.3, answers.set).start()
    recorder.log_tags({"a": 1})
    assert seen == [(None, True)]
    recorder.close()


def test_another_process_sends_what_one_could_not_and_nothing_twice(tracking: Tracking) -> None:
    run_id = start(tracking, "handed-on")
    first, second = RunRecorder(tracking.uri, run_id), RunRecorder(tracking.uri, run_id)
    first.log_metrics({"train/loss": 1.0}, 1)
    first.flush()
    first.log_metrics({"train/loss": float("nan")}, 2)
    first.log_metrics({"train/loss": 3.0}, 3)
    kept = json.loads(json.dumps(first.unsent()))
    second.log_metrics({"train/loss": 4.0}, 4)
    second.begin_with([["train/loss", 1.0, 0, 1], *kept])
    second.close()
    assert [step for step, _ in history(tracking, run_id, "train/loss")] == [1, 2, 3, 4]
    assert second.unsent() == []


def test_the_thread_sends_without_being_asked(tracking: Tracking) -> None:
    run_id = start(tracking, "thread")
    recorder = RunRecorder(tracking.uri, run_id, system_metrics=True, send_every_seconds=0.05)
    recorder.log_metrics({"train/loss": 1.0}, 1)
    client = connect(tracking.uri)
    for _ in range(400):
        metrics = client.get_run(run_id).data.metrics
        if "train/loss" in metrics and "system/cpu_utilization_percentage" in metrics:
            break
        recorder._stop.wait(0.05)
    recorder.close()
    assert metrics["train/loss"] == 1.0
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_a_recorder_that_cannot_send_fails_its_block_only_where_it_did_not_fail(tmp_path: Path) -> None:
    gone = f"sqlite:///{tmp_path}/gone.db"
    with pytest.raises(TrackingError, match=r"gone\.db"), RunRecorder(gone, "a-run-id"):
        pass
    with pytest.raises(ValueError, match="the cause"), RunRecorder(gone, "a-run-id"):
        raise ValueError("the cause")


def test_a_recorder_travels_as_its_settings(tracking: Tracking) -> None:
    run_id = start(tracking, "pickled")
    recorder = RunRecorder(tracking.uri, run_id, system_metrics=True)
    recorder.log_metrics({"train/loss": 1.0}, 1)
    copy: RunRecorder = pickle.loads(pickle.dumps(recorder))
    recorder.close()
    assert (copy.tracking_uri, copy.run_id, copy.system_metrics) == (tracking.uri, run_id, True)
    copy.log_metrics({"train/loss": 2.0}, 2)
    copy.close()
    assert history(tracking, run_id, "train/loss") == [(1, 1.0), (2, 2.0)]


def test_params_keep_their_first_value_and_long_ones_are_cut(tracking: Tracking) -> None:
    run_id = start(tracking, "params")
    recorder = RunRecorder(tracking.uri, run_id)
    recorder.log_params({f"key.{i}": i for i in range(130)} | {"long": "x" * 9000})
    recorder.log_params({"key.1": "another", "new": True})
    params = connect(tracking.uri).get_run(run_id).data.params
    assert len(params) == 132
    assert params["key.1"] == "1"
    assert params["new"] == "True"
    assert len(params["long"]) == 5000


def test_files_texts_and_folders_become_artifacts(tracking: Tracking, tmp_path: Path) -> None:
    run_id = start(tracking, "artifacts")
    recorder = RunRecorder(tracking.uri, run_id)
    recorder.log_text("words", "samples/0.txt")
    recorder.log_json({"a": "ü"}, "manifest.json")
    (tmp_path / "spec.yaml").write_text("name: x")
    recorder.log_file(tmp_path / "spec.yaml", "spec")
    recorder.log_folder(tmp_path, "folder")
    client = connect(tracking.uri)
    root = Path(client.get_run(run_id).info.artifact_uri)
    assert root.is_relative_to(tracking.artifact_location)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert names == ["folder/spec.yaml", "manifest.json", "samples/0.txt", "spec/spec.yaml"]
    assert "ü" in (root / "manifest.json").read_text(encoding="utf-8")


def test_a_run_that_does_not_exist_is_an_error(tracking: Tracking) -> None:
    recorder = RunRecorder(tracking.uri, "0" * 32)
    with pytest.raises(TrackingError, match="cannot be recorded"):
        recorder.log_params({"a": 1})


def test_the_process_wide_store_is_not_touched(tracking: Tracking, monkeypatch: Any, tmp_path: Path) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    start(tracking, "global")
    assert tracking.uri not in mlflow.get_tracking_uri()
    assert list(tmp_path.iterdir()) == []


def test_versions_name_this_package_and_what_decides_results() -> None:
    found = versions()
    assert {"atelier", "python", "torch", "mlflow", "numpy"} <= set(found)
    assert found.get("git_dirty", "true") in {"true", "false"}


def test_the_database_is_one_mlflow_itself_accepts(tracking: Tracking) -> None:
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from experiments where name = 'atelier'").fetchone() == (1,)
