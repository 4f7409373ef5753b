from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import MODALITIES, make_bundle, tiny_spec

from pipeline.errors import RegistryError, TrackingError
from pipeline.evaluation.metric import Score
from pipeline.generation.batch import generate
from pipeline.generation.sampling import WEIGHTS, draw, load_bundle
from pipeline.release.finding import fetch, find
from pipeline.release.registry import Registered, register
from pipeline.release.tracking import Tracking, connect, start_or_continue_run

SCORES = {"test/nll_nats": Score(86.25, "nats per example", "lower")}


@pytest.fixture(scope="session")
def registered(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Registered, str]]:
    """One version of a tiny model of each modality, and the run that made it."""
    made = {}
    for modality in MODALITIES:
        spec = tiny_spec(modality)
        run_id = start_or_continue_run(tracking, spec.name, spec.name, f"registered-{modality}")
        bundle = make_bundle(tmp_path_factory.mktemp(modality), modality)
        made[modality] = (register(tracking, run_id, bundle, spec.name, SCORES), run_id)
    return made


def again(tracking: Tracking, folder: Path, name: str, seed: int = 1) -> Registered:
    spec = tiny_spec("image", seed=seed)
    run_id = start_or_continue_run(tracking, spec.name, name, f"again-{name}-{seed}")
    return register(
        tracking, run_id, make_bundle(folder, "image", seed=seed), name, {"test/nll_nats": Score(float(seed))}
    )


def test_the_first_version_is_champion_and_later_ones_challenge(tracking: Tracking, tmp_path: Path) -> None:
    client = connect(tracking.uri)
    first = again(tracking, tmp_path / "1", "aliases", 1)
    assert first == Registered("models:/aliases/1", "1")
    aliases = client.get_registered_model("aliases").aliases
    assert {key: str(value) for key, value in aliases.items()} == {"champion": "1", "challenger": "1"}
    again(tracking, tmp_path / "2", "aliases", 2)
    aliases = client.get_registered_model("aliases").aliases
    assert {key: str(value) for key, value in aliases.items()} == {"champion": "1", "challenger": "2"}


def test_a_version_carries_its_scores_and_its_card(tracking: Tracking, registered: Any) -> None:
    version = connect(tracking.uri).get_model_version("tiny-image", "1")
    assert float(version.tags["test/nll_nats"]) == 86.25
    assert version.tags["atelier.prepared"] == "0123456789abcdef"
    assert version.description.startswith("# tiny-image")
    assert version.run_id == registered["image"][1]


def test_every_way_to_name_a_model_finds_the_same_weights(tracking: Tracking, registered: Any, tmp_path: Path) -> None:
    version, run_id = registered["image"]
    uris = (version.model_uri, "models:/tiny-image@champion", "models:/tiny-image", f"runs:/{run_id}")
    sha256 = {load_bundle(fetch(uri, tracking.uri, tmp_path)).weights_sha256 for uri in uris}
    assert len(sha256) == 1
    model_folder = find(version.model_uri, tracking.uri).location.removesuffix("artifacts/bundle")
    assert find(model_folder, tracking.uri).location == find(version.model_uri, tracking.uri).location


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/tiny-imag@champion", "there: .*tiny-image"),
        ("models:/tiny-image@winner", r"versions 1 and the aliases challenger \(version 1\), champion \(version 1\)"),
        ("models:/tiny-image/9", "has the versions 1"),
        ("models:/a/b/c", "write models:/NAME@champion"),
        ("runs:/00000000000000000000000000000000", "no run"),
    ],
)
def test_a_model_that_is_not_there_names_those_that_are(
    tracking: Tracking, tmp_path: Path, uri: str, message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        fetch(uri, tracking.uri, tmp_path)


@pytest.mark.parametrize("failing", ["set_registered_model_alias", "create_model_version", "log_model_artifacts"])
def test_a_failure_leaves_nothing_registered(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*arguments: Any, **options: Any) -> None:
        raise MlflowException("the connection was lost")

    name = f"half-{failing}"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, failing, fail)
        with pytest.raises(TrackingError, match="cannot be registered: the connection was lost"):
            again(tracking, tmp_path / "1", name)
    client = connect(tracking.uri)
    assert name not in {model.name for model in client.search_registered_models()}
    assert again(tracking, tmp_path / "1", name).version == "1"


def test_a_failure_leaves_the_versions_before_it(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    again(tracking, tmp_path / "1", "kept", 1)
    real = MlflowClient.set_registered_model_alias

    def fill_the_disk(self: Any, name: str, alias: str, version: str) -> None:
        real(self, name, alias, version)
        if str(version) == "2":
            raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", fill_the_disk)
        with pytest.raises(TrackingError, match="No space left"):
            again(tracking, tmp_path / "2", "kept", 2)
    client = connect(tracking.uri)
    assert [str(item.version) for item in client.search_model_versions("name = 'kept'")] == ["1"]
    aliases = client.get_registered_model("kept").aliases
    assert {key: str(value) for key, value in aliases.items()} == {"champion": "1", "challenger": "1"}


def test_a_changed_bundle_is_not_registered(tracking: Tracking, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "image")
    (bundle / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes() + b"\0")
    run_id = start_or_continue_run(tracking, tiny_spec("image").name, "changed", "changed")
    with pytest.raises(RegistryError, match="was changed after training"):
        register(tracking, run_id, bundle, "changed", {})
    assert "changed" not in {model.name for model in connect(tracking.uri).search_registered_models()}


def test_generating_from_the_registry_records_version_and_run(
    tracking: Tracking, registered: Any, tmp_path: Path
) -> None:
    record = generate("models:/tiny-audio@champion", 2, 7, tmp_path / "out", tracking_uri=tracking.uri)
    assert record["model_uri"] == "models:/tiny-audio/1"
    assert record["model_version"] == "1"
    assert record["run_id"] == registered["audio"][1]
    assert (tmp_path / "out" / "tiny-audio-00001.wav").is_file()


PREDICT = """
import json, sys
import mlflow, pandas as pd
for modality in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(f"models:/tiny-{modality}@champion")
    rows = model.predict(pd.DataFrame({"count": [2, 1], "seed": [7, 8]}))
    samples = [s if isinstance(s, str) else s.hex() for s in rows["sample"]]
    print(json.dumps([samples, list(rows["media_type"]), list(rows["seed"])]))
    if modality == "text":
        wish = pd.DataFrame({"count": [1], "prompt": ["To be"], "temperature": [0.7], "top_k": [5], "top_p": [0.9]})
        print(json.dumps(list(model.predict(wish)["sample"])))
"""


def test_a_fresh_process_loads_and_predicts_without_pickle(tracking: Tracking, registered: Any, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    result = subprocess.run(
        [sys.executable, "-c", PREDICT, *MODALITIES], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    text, prompted, image, audio = (json.loads(line) for line in result.stdout.splitlines())
    for (samples, media_types, seeds), modality in ((text, "text"), (image, "image"), (audio, "audio")):
        bundle = load_bundle(fetch(f"models:/tiny-{modality}", tracking.uri, tmp_path))
        raws = draw(bundle, 2, 7) + draw(bundle, 1, 8)
        assert samples == [raw if isinstance(raw, str) else bundle.codec.to_bytes(raw).hex() for raw in raws]
        assert len(set(media_types)) == 1
        assert seeds == [7, 7, 8]
    assert prompted[0].startswith("To be")
    assert bytes.fromhex(image[0][0]).startswith(b"\x89PNG")
    assert bytes.fromhex(audio[0][0]).startswith(b"RIFF")


@pytest.mark.slow
def test_a_fresh_process_refuses_a_tampered_model(tracking: Tracking, tmp_path: Path) -> None:
    version = again(tracking, tmp_path, "tampered-elsewhere")
    weights = Path(find(version.model_uri, tracking.uri).location, WEIGHTS)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", f"import mlflow; mlflow.pyfunc.load_model({version.model_uri!r})"],
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0 and "was changed after training and is not loaded" in result.stderr


def test_a_tampered_registered_model_is_refused_when_loaded(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    version = again(tracking, tmp_path, "tampered")
    weights = Path(find(version.model_uri, tracking.uri).location, WEIGHTS)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model_folder = weights.parent.parent.parent
    with pytest.raises(RegistryError, match="was changed after training"):
        mlflow.pyfunc.load_model(str(model_folder))
    with pytest.raises(RegistryError, match="was changed after training"):
        generate(version.model_uri, 1, 0, tmp_path / "out", tracking_uri=tracking.uri)
