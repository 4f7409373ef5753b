"""The champion: which version of a registered model its alias names, and what is written on versions.  [mlflow]

Read and written by the driver. Only `releases` moves the alias.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RegistryError
from pipeline.release.tracking import connect, explained, has_store

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Champion:
    """A version that an alias names; `created_at` is in seconds since 1970."""

    name: str
    version: str
    run_id: str | None
    prepared: str | None
    created_at: float

    @property
    def model_uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Version:
    """A version with what is written on it. `findings` is what the evaluation found wrong when it was registered, None
    when it did not look."""

    name: str
    version: str
    run_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def prepared(self) -> str | None:
        return self.tags.get("atelier.prepared")

    @property
    def findings(self) -> tuple[str, ...] | None:
        text = self.tags.get("atelier.findings")
        return None if text is None else tuple(json.loads(text))


def find_champion(tracking_uri: str, name: str, alias: str = CHAMPION) -> Champion | None:
    """The champion of a registered model; None when there is none yet, or no such store. Raises: TrackingError."""
    if not has_store(tracking_uri):
        return None
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    with explained(f"{tracking_uri}: the {alias} of {name!r} cannot be looked up"):
        try:
            version = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # A model without the alias is INVALID_PARAMETER_VALUE, one that is not there RESOURCE_DOES_NOT_EXIST.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
    return Champion(
        name,
        str(version.version),
        version.run_id,
        version.tags.get("atelier.prepared"),
        version.creation_timestamp / 1000,
    )


def list_versions(tracking_uri: str, name: str | None = None) -> list[Version]:
    """The versions of a model, or of every model, by name and number. Raises: TrackingError."""
    client = connect(tracking_uri)
    found: list[Any] = []
    with explained(f"{tracking_uri}: the versions of {name or 'all models'} cannot be listed"):
        token = None
        while True:
            page = client.search_model_versions(f"name = '{name}'" if name else None, page_token=token)
            found += page
            token = page.token
            if not token:
                break
    versions = [
        Version(item.name, str(item.version), item.run_id, dict(item.tags), item.description or "") for item in found
    ]
    return sorted(versions, key=lambda item: (item.name, int(item.version)))


def find_version(tracking_uri: str, name: str, version: str) -> Version:
    """Raises: RegistryError when there is no such version, naming those that there are; TrackingError."""
    known = {item.version: item for item in list_versions(tracking_uri, name)}
    if version not in known:
        raise RegistryError(f"{name}: there is no version {version}; it has {', '.join(known) or 'none'}")
    return known[version]


def tag_version(tracking_uri: str, name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version; one that it has gets the new value. Raises: TrackingError."""
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: {name!r} version {version} cannot be tagged"):
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)


def describe_version(tracking_uri: str, name: str, version: str, description: str) -> None:
    """Set the description of a version, cut to what MLflow's column holds. Raises: TrackingError."""
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: {name!r} version {version} cannot be described"):
        client.update_model_version(name, version, description[:5000])
