"""The spec of a run: one frozen, validated tree that is all that crosses from the driver into Ray."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from pipeline.reading import Strict
from pipeline.spec.data import DataSpec
from pipeline.spec.evaluation import EvaluationSpec
from pipeline.spec.misfits import misfits
from pipeline.spec.model import ModelSpec
from pipeline.spec.release import ReleaseSpec
from pipeline.spec.training import TrainingSpec


class TrackingSpec(Strict):
    """Where MLflow records: `uri` is MLFLOW_TRACKING_URI's value or, by default, an SQLite file in the storage
    (in the working directory when the storage is remote)."""

    uri: str | None = None
    experiment: str = "atelier"


class RegistrySpec(Strict):
    """Under which name the model is registered; None registers nothing."""

    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = None


class RunSpec(Strict):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    storage: str = "storage"
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec = RegistrySpec()
    release: ReleaseSpec = ReleaseSpec()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        mistakes = misfits(self.data, self.model, self.training)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def as_dict(self) -> dict[str, Any]:
        """The whole spec with every default, of JSON types."""
        return self.model_dump(mode="json")

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
