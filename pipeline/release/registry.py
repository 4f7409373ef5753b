"""Registering: a trained bundle becomes a version of a registered model.  [mlflow]

By the driver, at the end of a run. Everything goes through a client of a stated URI; MLflow's process-wide settings
stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ChampionMovedError
from pipeline.evaluation.metric import Score
from pipeline.generation.sampling import CHECKSUMS, MANIFEST, SPEC, WEIGHTS, Bundle, load_bundle
from pipeline.release.card import model_card
from pipeline.release.champion import CHALLENGER, find_champion
from pipeline.release.conclusion import CARD, conclude
from pipeline.release.gate import Decision
from pipeline.release.recorder import RunRecorder
from pipeline.release.releases import promote
from pipeline.release.tracking import Tracking, connect, explained, import_mlflow, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

MODEL_FILE = Path(__file__).with_name("model_file.py")

REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy", "pandas", "pyarrow", "pydantic", "PyYAML")
REQUIREMENTS_OF_MODALITY = {"text": ("tokenizers",), "image": ("pillow",), "audio": ("soundfile", "soxr", "scipy")}


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    model_uri: str
    version: str


def register(
    tracking: Tracking,
    run_id: str,
    bundle: Path,
    name: str,
    scores: Mapping[str, Score],
    decision: Decision | None = None,
) -> Registered:
    """Log `bundle` as a pyfunc model of the run and make it the next version of `name`.

    The version gets the alias `challenger`; the values of `scores` become its tags. Where the model has no champion it
    becomes that too, unless `decision`, which the gate made of it without a champion, is another than `promote`. The
    bundle is loaded first, so that what is registered can be loaded. When a step fails, what the steps before it made
    is deleted; a version that this run already registered with these weights is returned as it is, so that a run
    continued after a crash makes no second one. Raises: RegistryError on a bad bundle, TrackingError.
    """
    loaded = load_bundle(bundle)
    client = connect(tracking.uri)
    known = _known_version(client, tracking, run_id, name, loaded)
    version = known or _make_version(client, tracking, run_id, bundle, name, scores, loaded, decision)
    if known is not None:
        _make_challenger(client, tracking, name, known)
    _make_first(tracking.uri, name, version, decision)
    return Registered(f"models:/{name}/{version}", version)


def _known_version(client: MlflowClient, tracking: Tracking, run_id: str, name: str, loaded: Bundle) -> str | None:
    """The version that this run registered with these weights before it was broken off."""
    with explained(f"{tracking.uri}: the versions of {name!r} cannot be read"):
        for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            if known.tags.get("atelier.weights_sha256") == loaded.weights_sha256:
                return str(known.version)
    return None


def _make_challenger(client: MlflowClient, tracking: Tracking, name: str, version: str) -> None:
    """Give the alias to a version whose run was broken off before it had it; a newer challenger keeps it."""
    with explained(f"{tracking.uri}: {name!r} version {version} cannot be made challenger"):
        now = client.get_registered_model(name).aliases.get(CHALLENGER)
        if now is None or int(now) < int(version):
            client.set_registered_model_alias(name, CHALLENGER, version)


def _make_version(
    client: MlflowClient,
    tracking: Tracking,
    run_id: str,
    bundle: Path,
    name: str,
    scores: Mapping[str, Score],
    loaded: Bundle,
    decision: Decision | None,
) -> str:
    """The next version, with the alias `challenger`; whole, or nothing of it."""
    findings = decision.findings if decision else None
    card = model_card(loaded.spec, loaded.manifest, scores, findings, _provenance(run_id, loaded))
    with explained(f"{tracking.uri}: the model {name!r} cannot be registered"), contextlib.ExitStack() as undo:
        model = _log_model(client, tracking, run_id, bundle, loaded, card, undo)
        _make_registered_model(client, name, undo)
        tags = {"atelier.weights_sha256": loaded.weights_sha256, "atelier.prepared": str(loaded.manifest["key"])}
        tags |= {} if findings is None else {"atelier.findings": json.dumps(findings)}
        tags |= {key: repr(float(score.value)) for key, score in scores.items()}
        version = client.create_model_version(
            name,
            # Not "models:/ID": the SQLite registry would look that up in the process-wide store.
            source=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            tags=tags,
            description=card[:5000],  # as much as MLflow's column holds
        ).version
        undo.callback(client.delete_model_version, name, version)
        previous = client.get_registered_model(name).aliases.get(CHALLENGER)
        if previous is not None:
            undo.callback(client.set_registered_model_alias, name, CHALLENGER, previous)
        client.set_registered_model_alias(name, CHALLENGER, version)
        undo.pop_all()
    RunRecorder(tracking.uri, run_id).log_text(card, CARD)
    return str(version)


def _provenance(run_id: str, loaded: Bundle) -> dict[str, str]:
    """What leads back to how the model was made."""
    return {
        "run": run_id,
        "manifest sha256": str(loaded.manifest["sha256"]),
        "weights sha256": loaded.weights_sha256,
        **versions(),
    }


def _make_first(tracking_uri: str, name: str, version: str, decision: Decision | None) -> None:
    """Make the version champion where there is none and the gate allows it; another that came first stays."""
    if find_champion(tracking_uri, name) is not None:
        return
    if decision is not None:
        conclude(tracking_uri, name, version, None, decision)
        return
    with contextlib.suppress(ChampionMovedError):
        promote(tracking_uri, name, version, None, "the first version")


def _log_model(
    client: MlflowClient,
    tracking: Tracking,
    run_id: str,
    bundle: Path,
    loaded: Bundle,
    card: str,
    undo: contextlib.ExitStack,
) -> LoggedModel:
    """The model, logged under the run.

    `mlflow.pyfunc.log_model` does these steps too, but for the process-wide tracking URI, and it runs the model.
    """
    mlflow = import_mlflow()
    modality = loaded.layout.modality
    model: LoggedModel = client.create_logged_model(
        tracking.experiment_id,
        name="model",
        source_run_id=run_id,
        model_type="generative",
        tags={"atelier.family": loaded.spec.model.family.kind, "atelier.modality": modality},
    )
    undo.callback(client.delete_logged_model, model.model_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder, copy = Path(temporary, "model"), Path(temporary, "bundle")
        # MLflow keeps an artifact under its folder's own name, with all that lies in it.
        copy.mkdir()
        for file in (WEIGHTS, SPEC, MANIFEST, CHECKSUMS):
            shutil.copy2(bundle / file, copy)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(MODEL_FILE),
            artifacts={"bundle": str(copy)},
            signature=signature(modality),
            input_example=_input_example(),
            # Said outright: otherwise MLflow loads the model in a new process to see what it imports (half a minute).
            pip_requirements=_requirements(modality),
            mlflow_model=mlflow.models.Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
    return model


def signature(modality: str) -> ModelSignature:
    """What `predict` takes and gives: only `count` must be there."""
    import_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    wishes = [
        ColSpec(DataType.long, "count"),
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(DataType.double, "temperature", required=False),
        ColSpec(DataType.long, "top_k", required=False),
        ColSpec(DataType.double, "top_p", required=False),
        ColSpec(DataType.long, "length", required=False),
    ]
    if modality == "text":
        wishes.append(ColSpec(DataType.string, "prompt", required=False))
    sample = DataType.string if modality == "text" else DataType.binary
    return ModelSignature(
        inputs=Schema(wishes),
        outputs=Schema(
            [ColSpec(sample, "sample"), ColSpec(DataType.string, "media_type"), ColSpec(DataType.long, "seed")]
        ),
    )


def _input_example() -> Any:
    import pandas as pd

    example: dict[str, Any] = {"count": [2], "seed": [7], "temperature": [1.0]}
    return pd.DataFrame(example)


def _requirements(modality: str) -> list[str]:
    """Pins of what is installed. This package itself is not among them: it comes from its repository, and an index
    may have another of that name."""
    names = (*REQUIREMENTS, *REQUIREMENTS_OF_MODALITY[modality])
    pins = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            # "2.13.0+cpu" is a build that only its own index has.
            pins.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
    return pins


def _make_registered_model(client: MlflowClient, name: str, undo: contextlib.ExitStack) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    else:
        undo.callback(client.delete_registered_model, name)
