"""Finding a model by its name: which version or folder a URI names, and its bundle as a folder here.  [mlflow]

In whichever process draws, scores or begins with another's weights. Everything goes through a client of a stated URI;
MLflow's process-wide settings stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.generation.sampling import CHECKSUMS
from pipeline.release.tracking import connect, explained, import_mlflow

BUNDLE = "artifacts/bundle"
"""Where MLflow puts the artifact named `bundle` in a model."""


@dataclass(frozen=True)
class Found:
    """A model that a URI names. `location` is where its bundle is: a local folder, or what MLflow downloads."""

    model_uri: str
    location: str
    name: str | None = None
    version: str | None = None
    run_id: str | None = None


def fetch(model_uri: str, tracking_uri: str, into: Path) -> Path:
    """The folder of the bundle that `model_uri` names; downloaded below `into` unless it is on this machine.

    Takes `models:/NAME@alias`, `models:/NAME/3`, `models:/NAME` (the latest), `runs:/RUN`, or a folder that is or
    holds a bundle. Raises: RegistryError with the names that exist, TrackingError.
    """
    return download(find(model_uri, tracking_uri), tracking_uri, into)


def find(model_uri: str, tracking_uri: str) -> Found:
    """Which model a URI names, and where its bundle is. Raises: RegistryError with what exists, TrackingError."""
    if model_uri.startswith("models:/"):
        return _find_version(model_uri, tracking_uri)
    if model_uri.startswith("runs:/"):
        return _find_in_run(model_uri, tracking_uri)
    folder = Path(model_uri).expanduser()
    for candidate in (folder, folder / "bundle", folder / BUNDLE):
        if (candidate / CHECKSUMS).is_file():
            return Found(model_uri, str(candidate.resolve()))
    what = f"has no {CHECKSUMS}" if folder.is_dir() else "is not there"
    raise RegistryError(
        f"model {model_uri!r}: the folder {what}; write models:/NAME@champion, models:/NAME/3, runs:/RUN_ID, or the "
        "folder of a bundle"
    )


def download(found: Found, tracking_uri: str, into: Path) -> Path:
    """The local folder of a found bundle. Raises: RegistryError when it is no longer there, TrackingError."""
    location = found.location.removeprefix("file://")
    if "://" not in location and "mlflow-artifacts:" not in location:
        if not Path(location, CHECKSUMS).is_file():
            raise RegistryError(f"{found.model_uri}: its files are no longer at {location}; restore or register again")
        return Path(location)
    mlflow = import_mlflow()
    with explained(f"{found.model_uri}: the model at {location} cannot be downloaded"):
        path: str = mlflow.artifacts.download_artifacts(location, dst_path=str(into), tracking_uri=tracking_uri)
    return Path(path)


def _find_version(model_uri: str, tracking_uri: str) -> Found:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))?", model_uri)
    if not match:
        raise RegistryError(f"model {model_uri!r}: write models:/NAME@champion, models:/NAME/3 or models:/NAME")
    name, alias, number = match.groups()
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: {model_uri} cannot be looked up"):
        models = {model.name: model for model in client.search_registered_models()}
        if name not in models:
            names = ", ".join(sorted(models)) or "none is registered yet"
            raise RegistryError(f"{model_uri}: no model {name!r} in {tracking_uri}; there: {names}")
        versions = {str(item.version): item for item in client.search_model_versions(f"name = '{name}'")}
        aliases = dict(client.get_registered_model(name).aliases)
        if alias:
            wanted = str(aliases.get(alias, ""))
        else:
            wanted = number if number and number != "latest" else max(versions, key=int, default="")
        if wanted not in versions:
            raise RegistryError(
                f"{model_uri}: there is none; {name!r} in {tracking_uri} has the versions "
                f"{', '.join(sorted(versions, key=int)) or 'none'} and the aliases "
                f"{', '.join(f'{key} (version {value})' for key, value in sorted(aliases.items())) or 'none'}"
            )
        version = versions[wanted]
        if version.model_id:
            root = client.get_logged_model(version.model_id).artifact_location
        else:  # registered by other means than `register`
            root = client.get_model_version_download_uri(name, wanted)
    return Found(f"models:/{name}/{wanted}", f"{root.rstrip('/')}/{BUNDLE}", name, wanted, version.run_id)


def _find_in_run(model_uri: str, tracking_uri: str) -> Found:
    run_id = model_uri.removeprefix("runs:/").split("/", 1)[0]
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    with explained(f"{tracking_uri}: {model_uri} cannot be looked up"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RegistryError(f"{model_uri}: no run {run_id!r} in {tracking_uri}; look in 'mlflow ui'") from None
        outputs = run.outputs.model_outputs if run.outputs else []
        if not outputs:
            raise RegistryError(f"{model_uri}: the run made no model (its status is {run.info.status})")
        root = client.get_logged_model(outputs[-1].model_id).artifact_location
    return Found(model_uri, f"{root.rstrip('/')}/{BUNDLE}", run_id=run_id)
