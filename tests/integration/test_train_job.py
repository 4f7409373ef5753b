"""The whole path on a real Ray and a real MLflow: trained, scored, recorded, registered, drawn from, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import load_spec
from tests.command_line import Answer, run, run_here, settings
from tests.integration.broken_off import (
    assert_undisturbed,
    recorded_steps,
    run_key,
    saved_steps,
    start_training,
    until,
)

pytestmark = pytest.mark.ray

SMALL = [
    "data.limit=400",
    "model.backbone.hidden=[32]",
    "model.family.latent_size=4",
    "training.steps=40",
    "training.max_seconds=null",
    "training.batch_size=16",
    "training.report_every=10",
    "training.checkpoint_every=20",
    "training.validate_every=20",
    "training.threads_per_worker=1",
    "evaluation.nll_samples=5",
    "evaluation.samples=50",
]


def _overrides(storage: Path, *more: str) -> list[str]:
    return [f"storage={storage}", *SMALL, *more]


def _went_well(given: Answer) -> dict[str, Any]:
    """The answer of a job that ended without an error."""
    code, answer, errors = given
    assert code == 0, errors
    assert "Traceback" not in errors
    return answer


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def trained(ray_cluster: None, storage: Path) -> dict[str, Any]:
    """`atelier train conf/image_vae.yaml`, made small, as a process that joins a Ray."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return _went_well(run("train", "conf/image_vae.yaml", *settings(*_overrides(storage)), RAY_ADDRESS=address))


def test_last_line_has_everything_that_was_promised(trained: dict[str, Any]) -> None:
    keys = {"run_id", "model_uri", "model_version", "metrics", "seconds", "examples_per_second", "prepared", "report"}
    assert keys | {"verdict", "warnings"} == set(trained)
    assert isinstance(trained["warnings"], list)
    assert set(trained["verdict"]) == {"good", "varied", "new", "findings"}
    assert all(trained[key] for key in keys)
    for key in ("nll_nats", "elbo_nats", "kl_nats", "reconstruction_mse", "active_units"):
        assert f"test/{key}" in trained["metrics"]
    assert {"ray_start", "prepare", "launch", "train", "evaluate", "register", "report", "total"} <= set(
        trained["seconds"]
    )
    assert "<html" in Path(trained["report"]).read_text()[:500]


def test_mlflow_has_the_run_whole_and_each_step_once(trained: dict[str, Any], storage: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    run = client.get_run(trained["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "40"
    assert recorded_steps(storage, trained["run_id"]) == [10, 20, 30, 40]
    names = {artifact.path for artifact in client.list_artifacts(trained["run_id"])}
    assert {"spec.yaml", "manifest.json", "versions.json", "scores.json", "samples", "report.html"} <= names


def test_registered_model_draws_where_only_the_package_is(trained: dict[str, Any], storage: Path) -> None:
    code = (
        "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/image-vae@champion');"
        "print(len(model.predict({'count': [3], 'seed': [7]})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{storage}/mlflow.db"],
        capture_output=True,
        text=True,
        cwd=storage,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert result.stdout.split()[-1:] == ["3"], result.stderr


def test_generate_gives_the_same_files_for_the_same_seed(
    trained: dict[str, Any], storage: Path, tmp_path: Path
) -> None:
    digests = []
    for folder in ("one", "two"):
        out = tmp_path / folder
        common = ("generate", "models:/image-vae@champion", "--count", "5", "--seed", "7", "--storage", str(storage))
        _went_well(run_here(*common, "--out", str(out)))
        provenance = json.loads((out / "provenance.json").read_text())
        assert provenance["run_id"] == trained["run_id"]
        digests.append(provenance["files"])
        assert len(list(out.glob("image-vae-*.png"))) == 5
    assert digests[0] == digests[1]


def test_evaluate_of_the_registered_model_gives_the_scores_of_the_training(
    trained: dict[str, Any], storage: Path
) -> None:
    more = ("--storage", str(storage), "--set", "evaluation.num_workers=2")
    again = _went_well(run_here("evaluate", trained["model_uri"], *more))
    for key, value in trained["metrics"].items():
        assert again["metrics"][key] == pytest.approx(value, rel=1e-5), key


def test_second_run_on_two_workers_reuses_the_data_and_becomes_challenger(
    trained: dict[str, Any], storage: Path
) -> None:
    from mlflow import MlflowClient

    on_two = settings(*_overrides(storage, "training.num_workers=2", "training.profile={wait: 4, steps: 3}"))
    second = _went_well(run_here("train", "conf/image_vae.yaml", *on_two))
    assert second["prepared"] == trained["prepared"]
    assert second["model_version"] == "2"
    aliases = MlflowClient(f"sqlite:///{storage}/mlflow.db").get_registered_model("image-vae").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "1", "challenger": "2"}
    # The same seed and global batch: the two workers trained the same model, up to rounding.
    assert second["metrics"]["test/nll_nats"] == pytest.approx(trained["metrics"]["test/nll_nats"], rel=1e-2)
    _is_traced_and_timed(second["run_id"], storage)


def _is_traced_and_timed(run_id: str, storage: Path) -> None:
    """Of two workers: a trace of each in the run's folder, the first's in MLflow, and the parts of a step's time."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    run = client.get_run(run_id)
    files = {f"step-00000006-rank-{rank}{end}" for rank in (0, 1) for end in (".json.gz", "-operators.txt")}
    assert {path.name for path in Path(run.data.tags["atelier.run"], "profile").iterdir()} == files
    assert {f"profile/{file}" for file in files if "rank-0" in file} == {
        artifact.path for artifact in client.list_artifacts(run_id, "profile")
    }
    for part in ("data", "forward", "backward", "communication", "optimiser", "other"):
        assert run.data.metrics[f"time/{part}_seconds"] > 0, part
    assert run.data.metrics["train/peak_memory_mib"] > 50
    assert run.data.metrics["train/model_tflops_per_second"] > 0
    assert "waiting for other workers" in Path(run.data.tags["atelier.run"], "report.html").read_text()


def test_dry_run_says_what_would_be_done_and_does_nothing(trained: dict[str, Any], storage: Path) -> None:
    before = sorted(storage.rglob("*"))
    answer = _went_well(run_here("train", "conf/image_vae.yaml", "--dry-run", *settings(*_overrides(storage))))
    planned = answer["plan"]
    assert planned["prepared"] == {
        "key": trained["prepared"],
        "folder": f"{storage}/prepared/{trained['prepared']}",
        "reused": True,
    }
    assert planned["workers"]["number"] == 1
    assert sorted(storage.rglob("*")) == before


@pytest.mark.slow  # of the quick tests, `tests/chaos` kills a driver as well
def test_killed_run_goes_on_under_the_same_id_and_ends_with_the_same_weights(
    trained: dict[str, Any], storage: Path
) -> None:
    overrides = _overrides(storage, "training.steps=3000", "training.checkpoint_every=200", "seed=5")
    driver = start_training("conf/image_vae.yaml", overrides)
    until(lambda: saved_steps(storage), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    resumed = _went_well(run_here("train", "conf/image_vae.yaml", *settings(*overrides)))
    assert run_key(storage, resumed["run_id"]).endswith("-1"), "the run was continued, not begun anew"
    assert_undisturbed(load_spec("conf/image_vae.yaml", overrides), resumed)


def test_an_illness_is_said_once_in_the_terminal_and_told_in_the_answer_and_on_the_page(
    trained: dict[str, Any], storage: Path
) -> None:
    from mlflow import MlflowClient

    collapse = ("model.family.beta=10000", "model.family.prior=normal", "training.warmup_steps=0")
    ill = settings(*_overrides(storage, *collapse, "registry.name=null", "evaluation.samples=10"))
    code, answer, said = run_here("train", "conf/image_vae.yaml", *ill)
    assert code == 0, said
    (warning,) = [one for one in answer["warnings"] if one["kind"] == "posterior_collapse"]
    assert warning["step"] == 40 and "units are active" in warning["message"]
    assert said.count("Posterior collapse (posterior_collapse) at step 40: the KL is") == 1
    page = Path(answer["report"]).read_text()
    assert "Posterior collapse" in page and warning["message"] in page and warning["advice"] in page
    run = MlflowClient(f"sqlite:///{storage}/mlflow.db").get_run(answer["run_id"])
    assert "posterior_collapse" in run.data.tags["atelier.warnings"]
    assert run.data.metrics["validation/kl_nats"] < 0.1
