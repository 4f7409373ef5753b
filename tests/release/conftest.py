from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_bundles import tiny_spec

from pipeline.release.tracking import Tracking, open_tracking
from pipeline.storage import open_store


@pytest.fixture(scope="session")
def tracking(mlflow_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """A real MLflow store in SQLite, with our experiment in it. The space is on purpose."""
    storage: Path = tmp_path_factory.mktemp("a storage")
    shutil.copyfile(mlflow_file, storage / "mlflow.db")
    return open_tracking(tiny_spec("image"), open_store(str(storage)))
