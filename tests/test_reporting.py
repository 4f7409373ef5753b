"""Pages made after the fact: runs are found by their ids, folders and models, and what they left is on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundles import make_bundle, tiny_spec

from pipeline.errors import RegistryError
from pipeline.evaluation.metric import Score
from pipeline.release.recorder import RunRecorder
from pipeline.release.tracking import open_tracking, start_or_continue_run
from pipeline.reporting import find_run, report_job
from pipeline.storage import open_store


@pytest.fixture
def two_runs(storage_with_mlflow: Path) -> dict[str, str]:
    """The MLflow ids of two finished runs of an untrained model, by the names of their folders."""
    store = open_store(str(storage_with_mlflow))
    ids = {}
    for number, name in enumerate(("first-1", "second-1")):
        spec = tiny_spec("image", seed=number)
        tracking = open_tracking(spec, store)
        ids[name] = start_or_continue_run(tracking, spec.name, name, name, {"atelier.run": store.path("runs", name)})
        recorder = RunRecorder(tracking.uri, ids[name])
        for step in range(3):
            recorder.log_metrics({"train/loss": 3.0 - step - number}, step)
        recorder.log_json({"torch": "2"}, "versions.json")
        recorder.finish("FINISHED")
        make_bundle(storage_with_mlflow / "runs" / name / "bundle", "image", seed=number)
        state = {
            "status": "finished",
            "run_id": ids[name],
            "spec": spec.as_dict(),
            "outcome": {"seconds": {"total": 9}},
        }
        store.write_json(state, "runs", name, "run.json")
        score = Score(80.0 + number, "nats per example", "lower", {"split": "test"}, (79.9 + number, 80.1 + number))
        store.write_json({"test/nll_nats": score.as_dict()}, "runs", name, "scores.json")
    return ids


def test_a_run_is_found_by_id_name_and_folder(two_runs: dict[str, str], storage_with_mlflow: Path) -> None:
    store = open_store(str(storage_with_mlflow))
    uri = f"sqlite:///{storage_with_mlflow}/mlflow.db"
    for reference in ("first-1", two_runs["first-1"], str(storage_with_mlflow / "runs" / "first-1")):
        place = find_run(reference, store, uri)
        assert (place.label, place.run_id) == ("first-1", two_runs["first-1"])
    with pytest.raises(RegistryError, match=r"there: first-1, second-1"):
        find_run("third", store, uri)


def test_runs_are_put_side_by_side(two_runs: dict[str, str], storage_with_mlflow: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    labels = report_job(["first-1", two_runs["second-1"]], out, str(storage_with_mlflow))
    html = out.read_text(encoding="utf-8")
    assert labels == ["first-1", "second-1"]
    assert '<span class="name best">first-1</span>' in html
    assert html.count("data:image/png") == 2 * 30
    assert "<h3>train loss</h3>" in html
    assert "seed" in html[html.index('id="differences"') :]


def test_the_report_of_one_run_is_made_anew(
    two_runs: dict[str, str], storage_with_mlflow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    report_job(["second-1"], out, str(storage_with_mlflow))
    html = out.read_text(encoding="utf-8")
    assert "<h1>tiny-image</h1>" in html
    assert html.count("data:image/png") == 64
    for part in ("81", "80.90 to 81.10", "<dt>torch</dt>", "<h3>loss</h3>"):
        assert part in html
    assert json.loads((storage_with_mlflow / "runs/second-1/run.json").read_text())["status"] == "finished"
