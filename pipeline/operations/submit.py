"""What is sent to a cluster as a job: arguments whose paths hold there, the sources and confs, a few variables.

Runs in the submitter's process. Everything is checked here before anything leaves; nothing of the submitter's
directory or environment goes along but what is named here. `cluster` does the sending.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import SpecError, SubmissionError
from pipeline.reading import apply_overrides, parse_value, validated
from pipeline.spec import EvaluationSpec, RunSpec, load_spec

if TYPE_CHECKING:
    from pipeline.operations.schedule_file import RetrainSpec
    from pipeline.tuning.space import CampaignSpec

PACKAGES = ("pipeline", "jobs")
SOURCE_SUFFIXES = frozenset({".py", ".j2", ".html", ".css", ".js"})

SIZE_LIMIT_VARIABLE = "RAY_max_grpc_message_size"
SIZE_LIMIT = 512 * 1024**2
"""Ray keeps a package in the head's memory and refuses more than this, unless the variable says otherwise."""

STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_SECONDS, AFTER_CHECKPOINT_SECONDS = 35, 15
"""How long a stopped job has at least before it is killed (Ray gives 3 s), and beyond `training.stop_seconds`, which is
for a last checkpoint: to mark its MLflow run and to end its workers."""
STOPPED_WITHIN_SECONDS = 25
"""Beyond that, until whoever stopped it knows that its processes are gone."""

SECRET_WORDS = re.compile(r"(?i)(password|passwd|pwd|secret|token|access_key)[^=&]*=")


@dataclass
class Request:
    """A command that is right and holds anywhere: the values of its options, and the files that they name.

    `confs` maps names in the package to files here; `notes` tell the user what was changed; `stop_seconds` is how long
    the job may take to end when it is stopped.
    """

    values: dict[str, Any]
    confs: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stop_seconds: int = STOP_WAIT_SECONDS

    def settle(self, key: str, given: str, settled: str) -> None:
        self.notes.append(f"{key}: {given!r} is sent as {settled!r}, since the job runs in another directory")


def check_request(verb: str, values: Mapping[str, Any]) -> Request:
    """The command `verb` with `values` by option, checked as the command itself would, with absolute paths.

    Raises: SpecError with every mistake, SubmissionError when a secret would be sent.
    """
    request = Request(dict(values))
    CHECKS[verb](request)
    return request


# --- the commands ---------------------------------------------------------------------------------------------


def _check_spec(request: Request) -> None:
    conf = Path(request.values["conf"])
    overrides = list(request.values["overrides"])
    spec = load_spec(conf, overrides)
    request.stop_seconds = stop_seconds(spec)
    request.values["overrides"] = overrides + _settled_keys(spec, request)
    (request.values["conf"],) = _pack(request, [conf])


def _check_campaign(request: Request) -> None:
    from pipeline.tuning.space import load_campaign

    campaign = load_campaign(request.values["campaign_file"], request.values["overrides"])
    _check_file_over_conf(request, "campaign_file", campaign.spec, campaign.base)


def _check_retraining(request: Request) -> None:
    from pipeline.operations.schedule_file import load_retraining

    retraining = load_retraining(request.values["schedule_file"], request.values["overrides"])
    _check_file_over_conf(request, "schedule_file", retraining.spec, retraining.base)
    request.values["once"] = not request.values["dry_run"]


def _check_file_over_conf(request: Request, key: str, spec: CampaignSpec | RetrainSpec, base: RunSpec) -> None:
    """A file that names a conf, by a path from its own place, and overrides keys of it under `set`."""
    path = Path(request.values[key])
    request.stop_seconds = stop_seconds(base)
    overrides = list(request.values["overrides"])
    if settled := _settled_keys(base, request):
        overrides.append(f"set={json.dumps([*spec.set, *settled])}")
    name, conf = _pack(request, [path, path.parent / spec.conf])
    if Path(spec.conf).is_absolute():
        overrides.append(f"conf={os.path.relpath(conf, Path(name).parent)}")
    request.values |= {key: name, "overrides": overrides}


def _check_evaluation(request: Request) -> None:
    overrides = list(request.values["overrides"])
    tree = apply_overrides({}, overrides)
    if wrong := [part for part in tree if part != "evaluation"]:
        raise SpecError(f"--set {wrong[0]}: an evaluation changes evaluation.… only; the model is what it is")
    validated(EvaluationSpec, tree.get("evaluation", {}), "--set evaluation")
    _settle_model(request)


def _check_generation(request: Request) -> None:
    _settle_model(request)
    given = Path(request.values["out"])
    request.values["out"] = settled = str(given.expanduser().absolute())
    if not given.is_absolute():
        request.settle("--out", str(given), settled)


CHECKS: dict[str, Callable[[Request], None]] = {
    "prepare": _check_spec,
    "train": _check_spec,
    "tune": _check_campaign,
    "evaluate": _check_evaluation,
    "generate": _check_generation,
    "retrain": _check_retraining,
}


def stop_seconds(spec: RunSpec) -> int:
    """How long a process that trains may take to end, from SIGTERM on."""
    return max(STOP_WAIT_SECONDS, math.ceil(spec.training.stop_seconds) + AFTER_CHECKPOINT_SECONDS)


def _settle_model(request: Request) -> None:
    """A model's folder, and the storage whose MLflow and prepared data are meant."""
    model = str(request.values["model_uri"])
    request.values["model_uri"] = settled = _absolute(model)
    if settled != model:
        request.settle("the model", model, settled)
    storage = request.values["storage"]
    if storage is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        storage = "storage"
    if storage is not None:
        request.values["storage"] = settled = without_secret("--storage", _absolute(storage))
        if settled != storage:
            request.settle("--storage", storage, settled)


def _settled_keys(spec: RunSpec, request: Request) -> list[str]:
    """Overrides that make the paths of a spec absolute. Raises: SubmissionError when one carries a secret."""
    from pipeline.data.sources.huggingface import is_on_hub

    keys = {
        "storage": spec.storage,
        "data.source.path": None if is_on_hub(spec.data.source) else getattr(spec.data.source, "path", None),
        "training.init_from": spec.training.init_from,
    }
    settled = {key: _absolute(value) for key, value in keys.items() if value is not None}
    if spec.tracking.uri is not None:
        keys["tracking.uri"] = spec.tracking.uri
        settled["tracking.uri"] = absolute_tracking_uri(spec.tracking.uri)
    elif "://" in spec.storage and not os.environ.get("MLFLOW_TRACKING_URI"):
        request.notes.append(
            f"storage {spec.storage!r} holds no SQLite file: unless the cluster sets MLFLOW_TRACKING_URI, the job's "
            "MLflow runs end with the job's directory"
        )
    overrides = []
    for key, value in settled.items():
        without_secret(key, value)
        if value != keys[key]:
            request.settle(key, str(keys[key]), value)
            overrides.append(f"{key}={value if parse_value(value) == value else json.dumps(value)}")
    return overrides


def _absolute(path: str) -> str:
    """A path that holds anywhere; a URI (s3://…, models:/…) does."""
    return path if re.match(r"[a-z][a-z0-9+.-]*:/", path) else str(Path(path).expanduser().absolute())


def absolute_tracking_uri(uri: str) -> str:
    """An MLflow address that means the same in any directory."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"


def without_secret(name: str, uri: str) -> str:
    """`uri`, if no password is in it: job information, specs and runs may be read by others."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    signed_in = parts.username is not None and parts.scheme in ("http", "https")
    if parts.password is not None or signed_in or SECRET_WORDS.search(parts.query):
        raise SubmissionError(
            f"{name} ({parts.scheme}://…) has a password or a token in it, and whoever may list the cluster's jobs "
            "could read it; leave it out here, and set it on the cluster's nodes (MLFLOW_TRACKING_URI, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; the storage's own variables)"
        )
    return uri


# --- the package ----------------------------------------------------------------------------------------------


def _pack(request: Request, paths: list[Path]) -> list[str]:
    """Names in the package for `paths`: as they are from here, or under conf/ when they lie elsewhere."""
    here = Path.cwd()
    full = [Path(os.path.normpath(path.expanduser().absolute())) for path in paths]
    if all(path.is_relative_to(here) for path in full):
        names = [path.relative_to(here).as_posix() for path in full]
    else:
        base = Path(os.path.commonpath([path.parent for path in full]))
        names = [f"conf/{path.relative_to(base).as_posix()}" for path in full]
    request.confs.update(zip(names, full, strict=True))
    return names


@contextlib.contextmanager
def packed(confs: Mapping[str, Path]) -> Iterator[Path]:
    """A folder that holds the package, until the block ends. Raises: SubmissionError when Ray would refuse it."""
    with tempfile.TemporaryDirectory(prefix="atelier-package-") as folder:
        write_package(Path(folder), confs)
        yield Path(folder)


def write_package(folder: Path, confs: Mapping[str, Path]) -> int:
    """Copy the sources of this installation and `confs` into an empty `folder`; returns the number of bytes.

    Raises: SubmissionError when Ray would refuse the package.
    """
    files = {name: path for package in PACKAGES for name, path in _sources(package)} | dict(confs)
    size = sum(path.stat().st_size for path in files.values())
    limit = int(os.environ.get(SIZE_LIMIT_VARIABLE, SIZE_LIMIT))
    if size >= limit:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise SubmissionError(
            f"the package has {size:,} bytes and Ray takes less than {limit:,}; the largest file is {files[largest]} "
            f"({files[largest].stat().st_size:,}); keep data in the storage, or set {SIZE_LIMIT_VARIABLE} here and on "
            "the cluster"
        )
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return size


def _sources(package: str) -> Iterable[tuple[str, Path]]:
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    root = Path(next(iter(found.submodule_search_locations)))
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in SOURCE_SUFFIXES:
            yield f"{package}/{path.relative_to(root).as_posix()}", path


def job_environment(names: Iterable[str] = (), stop_seconds: int = STOP_WAIT_SECONDS) -> dict[str, str]:
    """The variables that a job gets: what it needs to run as here and to end in `stop_seconds` when it is stopped, and
    `names` that the user asked for.

    Raises: SubmissionError when one of `names` is not set, or when MLFLOW_TRACKING_URI has a password in it.
    """
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise SubmissionError(f"--env {missing[0]}: there is no such variable here; export it, or leave --env away")
    chosen = {
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        STOP_WAIT_VARIABLE: os.environ.get(STOP_WAIT_VARIABLE, str(stop_seconds)),
    }
    if mode := os.environ.get("RAY_AUTH_MODE"):
        chosen["RAY_AUTH_MODE"] = mode
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        chosen["MLFLOW_TRACKING_URI"] = without_secret("MLFLOW_TRACKING_URI", absolute_tracking_uri(uri))
    return chosen | {name: os.environ[name] for name in names}
