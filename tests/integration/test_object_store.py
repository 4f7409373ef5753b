"""Prepare, train and register with the storage on S3: a real server on loopback, spoken to by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.generation.sampling import draw, load_bundle
from pipeline.planning import plan
from pipeline.release.finding import fetch
from pipeline.spec import load_spec
from pipeline.storage import open_store
from pipeline.workflow import train_job

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto's S3 server is not installed")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override={host}%3A{port}&region=us-east-1&allow_bucket_creation=true"
    store = open_store(f"s3://atelier-test/storage?{options}")
    store.filesystem.create_dir("atelier-test")
    yield f"s3://atelier-test/storage?{options}"
    server.stop()


def test_storage_on_s3_serves_like_a_folder(
    ray_cluster: None, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = [
        f"storage={bucket}",
        f"tracking.uri={uri}",
        "data.limit=200",
        "model.backbone.hidden=[16]",
        "training.steps=20",
        "training.checkpoint_every=10",
        "training.threads_per_worker=1",
        "evaluation.nll_samples=2",
        "evaluation.samples=20",
    ]
    spec = load_spec("conf/image_vae.yaml", overrides)
    # With a remote storage and no server, MLflow's artifacts are in the working directory: not in the checkout.
    monkeypatch.chdir(tmp_path)
    outcome = train_job(spec)
    store = open_store(bucket)
    assert outcome.prepared is not None
    assert store.exists("prepared", outcome.prepared, "manifest.json")
    (run,) = store.list_names("runs")
    assert {"bundle", "run.json", "scores.json", "report.html"} <= set(store.list_names("runs", run))
    assert "step-00000020" in store.list_names("training", run)

    bundle = load_bundle(fetch("models:/image-vae@champion", uri, tmp_path / "fetched"))
    assert draw(bundle, 2, seed=0)[0].shape == (28, 28, 1)
    # A second call finds the data prepared, and the run finished.
    planned = plan(spec)
    assert planned["prepared"]["reused"]
    assert planned["run"]["key"].endswith("-2")
