"""The path of one run: which changes of a spec leave it the same run, and what is raised when MLflow is gone too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import workflow
from pipeline.claim import Claim
from pipeline.data import manifest, spread
from pipeline.errors import NonFiniteLossError, TrackingError
from pipeline.outcome import Stopwatch
from pipeline.progress import silent
from pipeline.release.recorder import RunRecorder
from pipeline.spec import RunSpec
from pipeline.storage import Store, open_store
from pipeline.training.checkpoint import FREE_TO_CHANGE, spec_differences
from pipeline.workflow import NOT_IDENTITY, run_key
from tests.conftest import cell_spec

COMPUTED_OTHERWISE: dict[str, Any] = {
    "micro_batch": 4,
    "sharding": "fsdp",
    "channels_last": True,
    "compile": True,
    "tf32": False,
    "placement": "spread",
}


def spec_of(**training: Any) -> RunSpec:
    return cell_spec("vae", "image", **training)


# --- the same run -----------------------------------------------------------------------------------------------


def test_what_is_no_part_of_a_runs_identity_may_differ_from_its_checkpoints() -> None:
    paths = {(key,) for key, part in NOT_IDENTITY.items() if part is True}
    paths |= {(key, one) for key, part in NOT_IDENTITY.items() if part is not True for one in part}
    assert paths <= set(FREE_TO_CHANGE)


def begun(storage: Path) -> tuple[Store, str]:
    """A storage with an unfinished run of `spec_of()`, and the run's name."""
    store = open_store(str(storage))
    key = run_key(spec_of(), "prepared", store)
    store.write_json({"status": "running"}, "runs", key, "run.json")
    return store, key


@pytest.mark.parametrize("changed", COMPUTED_OTHERWISE)
def test_an_unfinished_run_goes_on_when_it_is_computed_otherwise(changed: str, tmp_path: Path) -> None:
    store, key = begun(tmp_path)
    now = spec_of(**{changed: COMPUTED_OTHERWISE[changed]})
    assert now != spec_of()
    assert run_key(now, "prepared", store) == key
    assert spec_differences(spec_of().as_dict(), now.as_dict()) == []


@pytest.mark.parametrize("changed", [{"precision": "bfloat16"}, {"lr": 0.5}])
def test_another_run_begins_when_another_model_would_come_of_it(changed: dict[str, Any], tmp_path: Path) -> None:
    store, key = begun(tmp_path)
    assert run_key(spec_of(**changed), "prepared", store) != key


# --- without MLflow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [NonFiniteLossError("the loss is nan"), SystemExit(143), ValueError("a defect")])
def test_what_ended_a_run_is_raised_though_mlflow_does_not_answer(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def fail(*_: object) -> None:
        raise failure

    def unanswered(recorder: RunRecorder, value: object) -> None:
        tried.append(value)
        raise TrackingError("MLflow does not answer")

    monkeypatch.setattr(workflow, "_stages", fail)
    monkeypatch.setattr(RunRecorder, "log_tags", unanswered)
    monkeypatch.setattr(RunRecorder, "finish", unanswered)
    monkeypatch.setattr("pipeline.release.tracking.start_or_continue_run", lambda *_: "a-run-id")
    arguments: Any = (SimpleNamespace(key="prepared"), SimpleNamespace(uri="nowhere"))
    store = open_store(str(tmp_path))
    with pytest.raises(type(failure)) as raised:
        workflow._train_and_after(spec_of(), store, *arguments, "a-run", {}, silent, Stopwatch(), Claim(store))
    assert raised.value is failure
    if isinstance(failure, SystemExit):
        assert tried == ["KILLED"]
    else:
        tags = [{"atelier.error": str(failure)}] if isinstance(failure, NonFiniteLossError) else []
        assert tried == [*tags, "FAILED"]


@pytest.mark.parametrize("there", [True, False])
def test_workers_start_early_only_for_a_set_that_is_not_there(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[bool] = []
    monkeypatch.setattr(spread, "begin", lambda: began.append(True))
    monkeypatch.setattr(manifest, "prepared_key", lambda spec, corpus: "key")
    store = open_store(str(tmp_path))
    if there:
        store.write_bytes(b"{}", manifest.FOLDER, "key", manifest.MANIFEST)
    workflow._begin_new(spec_of(), store, SimpleNamespace())  # type: ignore[arg-type]
    assert began == ([] if there else [True])
