"""What must hold of a run after its kills: the weights, the history and the machine of one that was never killed."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.integration.ray_nodes import RayNodes

OF_TRAINING = ("RayTrainWorker", "TrainController")
"""In the titles of processes of Ray that work for a training."""
CLEAN_WITHIN_SECONDS = 60.0
OF_THE_MODEL = ("validation/", "health/", "train/lr")
"""Metrics that tell of the training: their values too must be those of the undisturbed run. Others tell of time, or are
scores, whose sums are taken by as many workers as there is room for."""
OF_THE_START = ("system/", "train/num_workers", "train/model_tflops_per_second", "train/mfu")
"""Metrics whose steps are another matter: seconds, reports of Ray's workers alone or, as operations are counted after
the first report of a start, not of every report."""

History = dict[str, list[tuple[int, float]]]


def differing_weights(storage: Path, key: str, undisturbed: str) -> list[str]:
    """Tensors of the bundle and of the last checkpoint that are not bit for bit those of the undisturbed run."""
    found: list[str] = []
    pairs = [(_bundle(storage, key), _bundle(storage, undisturbed))]
    last, last_undisturbed = (_last_checkpoint(storage, name) for name in (key, undisturbed))
    if last is None or last_undisturbed is None:
        return [f"no checkpoint is left of {key if last is None else undisturbed}"]
    if last.name != last_undisturbed.name:
        found.append(f"the last checkpoint is {last.name}, not {last_undisturbed.name}")
    pairs += [(path, last_undisturbed / path.name) for path in sorted(last.glob("*.safetensors"))]
    for ours, theirs in pairs:
        one, other = load_file(ours), load_file(theirs)
        found += [
            f"{ours.parent.name}/{ours.name}: {name}"
            for name in sorted(one.keys() | other.keys())
            if name not in one or name not in other or not _same(one[name], other[name])
        ]
    return found


def _last_checkpoint(storage: Path, key: str) -> Path | None:
    return max(storage.glob(f"training/{key}/step-*"), default=None)


def _bundle(storage: Path, key: str) -> Path:
    return storage / "runs" / key / "bundle" / "model.safetensors"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, of tensors without NaN."""
    return one.dtype == other.dtype and torch.equal(one, other)


def history_of(storage: Path, run_id: str) -> History:
    """Steps and values of every metric that MLflow has of a run, as they were recorded."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    keys = client.get_run(run_id).data.metrics
    return {key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)] for key in keys}


def history_faults(history: History, undisturbed: History) -> list[str]:
    """Steps that are there twice, steps that are missing or new, and values of the model that differ."""
    found = []
    for key in sorted(history.keys() | undisturbed.keys()):
        ours, theirs = history.get(key, []), undisturbed.get(key, [])
        steps, expected = [step for step, _ in ours], [step for step, _ in theirs]
        twice = sorted(step for step, times in Counter(steps).items() if times > 1)
        if twice:
            found.append(f"{key}: {len(twice)} steps are there more than once, the first {twice[0]}")
        if key.startswith(OF_THE_START):
            continue
        missing, new = sorted(set(expected) - set(steps)), sorted(set(steps) - set(expected))
        if missing or new:
            found.append(f"{key}: missing {missing[:5]}, too many {new[:5]}")
        elif key.startswith(OF_THE_MODEL) and sorted(ours) != sorted(theirs):
            (step, value), (_, other) = next(p for p in zip(sorted(ours), sorted(theirs), strict=False) if p[0] != p[1])
            found.append(f"{key}: {value!r} at step {step}, undisturbed {other!r}")
    return found


def runs_of(storage: Path, key: str) -> list[tuple[str, str]]:
    """Id and status of every MLflow run of the run `key`."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"tags.`atelier.run_key` = '{key}'")
    return [(run.info.run_id, run.info.status) for run in runs]


def versions_of(storage: Path, run_id: str) -> int:
    """How many registered versions came of a run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db", registry_uri=f"sqlite:///{storage}/mlflow.db")
    return len(client.search_model_versions(f"run_id = '{run_id}'"))


def left_running(nodes: RayNodes) -> list[str]:
    """Processes and placement groups of trainings that are still there after a while in which they may end."""
    deadline = time.monotonic() + CLEAN_WITHIN_SECONDS
    while True:
        found = [title for word in OF_TRAINING for title in nodes.commands_with(f"ray::{word}")]
        found += _placement_groups(nodes)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _placement_groups(nodes: RayNodes) -> list[str]:
    answer: dict[str, Any] = json.loads(nodes.get("/api/v0/placement_groups?detail=0"))
    groups = answer["data"]["result"]["result"]
    return [f"placement group {group['placement_group_id']}" for group in groups if group["state"] != "REMOVED"]
