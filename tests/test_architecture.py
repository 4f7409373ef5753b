"""The walls of the house, held by reading imports: where Ray and MLflow may be, and which way data flows."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PIPELINE = sorted(Path("pipeline").rglob("*.py"))
JOBS = sorted(Path("jobs").rglob("*.py"))

RAY_ROOMS = {
    "pipeline/data/spread.py",
    "pipeline/training/worker.py",
    "pipeline/training/launch.py",
    "pipeline/training/lean_trainer.py",
    "pipeline/training/asked.py",
    "pipeline/training/elastic.py",
    "pipeline/training/failures.py",
    "pipeline/evaluation/evaluate.py",
    "pipeline/ray_session.py",
    "pipeline/workflow.py",
    "pipeline/operations/doctor.py",
    "pipeline/tuning/trial.py",
    "pipeline/tuning/campaign.py",
    "pipeline/tuning/under_tune.py",
    "pipeline/operations/cluster.py",
}
MLFLOW_ROOMS = {
    "pipeline/release/tracking.py",
    "pipeline/release/recorder.py",
    "pipeline/release/registry.py",
    "pipeline/release/finding.py",
    "pipeline/release/champion.py",
    "pipeline/release/releases.py",
    "pipeline/release/model_file.py",
}
PLAIN_TRAINING = ("steps", "state", "optimizer", "loop", "session")
PLAIN = ["pipeline/models", *(f"pipeline/training/{name}.py" for name in PLAIN_TRAINING)]
BATCHES = ("batches.py", "order.py", "streaming.py", "windows.py", "lanes.py")
ORDER = ["data", "models", "evaluation", "training", "generation", "release", "report", "tuning", "operations"]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Top-level names and `pipeline` modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return frozenset(found)


def uses(path: Path, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imports(path))


@pytest.mark.parametrize("path", PIPELINE, ids=str)
def test_ray_and_mlflow_stay_in_their_rooms(path: Path) -> None:
    assert not uses(path, "ray") or str(path) in RAY_ROOMS
    assert not uses(path, "mlflow") or str(path) in MLFLOW_ROOMS


@pytest.mark.parametrize("path", PIPELINE, ids=str)
def test_models_and_the_loop_are_plain_pytorch(path: Path) -> None:
    if not str(path).startswith(tuple(PLAIN)):
        return
    assert not {name.split(".")[0] for name in imports(path)} & {"ray", "mlflow", "pandas"}


def test_models_know_no_later_room() -> None:
    for path in Path("pipeline/models").glob("*.py"):
        for name in imports(path):
            assert not name.startswith(tuple(f"pipeline.{room}" for room in ORDER[2:])), f"{path} imports {name}"


def test_data_knows_models_only_for_batches_and_seeds() -> None:
    for path in Path("pipeline/data").rglob("*.py"):
        for name in imports(path):
            allowed = name == "pipeline.models.base" and path.name in BATCHES
            assert allowed or not name.startswith(tuple(f"pipeline.{room}" for room in ORDER[1:])), f"{path}: {name}"


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_jobs_are_thin(path: Path) -> None:
    if path.name != "terminal.py":
        assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", PIPELINE + JOBS, ids=str)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert path.stem not in ("utils", "common", "misc", "helpers")
    assert ast.get_docstring(parsed(path)), f"{path} has no docstring"
