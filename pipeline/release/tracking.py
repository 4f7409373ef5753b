"""Tracking: where MLflow records, and a run that is started or continued.  [mlflow]

The driver calls `open_tracking` once, before anyone else, because processes that create the SQLite store together
break each other; it then starts the run. Its id and the tracking URI travel to whoever fills it (`recorder`).
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import logging
import os
import platform
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pipeline
from pipeline.code_version import git_commit, git_modified
from pipeline.errors import TrackingError
from pipeline.spec import RunSpec
from pipeline.storage import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "atelier.run_key"
ANSWER_WITHIN_SECONDS = 5
VERSIONED_PACKAGES = ("ray", "torch", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors")
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

logger = logging.getLogger(__name__)
_environment = threading.RLock()


@dataclass(frozen=True)
class Tracking:
    """An MLflow store that answers, and the experiment in it; `artifact_location` is the experiment's."""

    uri: str
    experiment_id: str
    artifact_location: str


# --- the store ------------------------------------------------------------------------------------------------


def resolve_uri(store: Store, uri: str | None = None) -> str:
    """The tracking URI: `uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the storage.

    A remote storage holds no SQLite file: it is then in the working directory, and a server is the better choice.
    Paths come out absolute, since workers run in other directories. Raises: TrackingError on a folder as URI.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not chosen:
        return f"sqlite:///{_local_folder(store) / 'mlflow.db'}"
    if chosen.startswith("file:") or ("://" not in chosen and chosen != "databricks"):
        raise TrackingError(
            f"tracking uri {chosen!r}: MLflow no longer records into folders; write sqlite:///path/to/mlflow.db, or "
            "the http:// address of a server"
        )
    if chosen.startswith("sqlite:///"):
        return f"sqlite:///{Path(chosen.removeprefix('sqlite:///')).expanduser().resolve()}"
    return chosen


def open_tracking(spec: RunSpec, store: Store) -> Tracking:
    """The experiment of `spec.tracking`, made if there is none; called once, by the driver.

    Takes about 2 s to import MLflow and 1 s to open an SQLite store, or 4 s to create it (all its migrations run),
    so call it beside what also waits, such as the start of Ray. Raises: TrackingError, within seconds when a
    server does not answer.
    """
    uri = resolve_uri(store, spec.tracking.uri)
    name = spec.tracking.experiment
    client = connect(uri, create=True)
    with explained(f"{uri}: the experiment {name!r} cannot be opened"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # A server knows where its artifacts belong; a database alone would have them in a worker's directory.
            location = None if _is_server(uri) else str(_local_folder(store) / "mlartifacts")
            experiment = client.get_experiment(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"{uri}: the experiment {name!r} was deleted; restore it with 'mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}', or set tracking.experiment to another name"
        )
    return Tracking(uri, experiment.experiment_id, experiment.artifact_location)


def connect(uri: str, create: bool = False, tries: int = 1) -> MlflowClient:
    """A client of the store at `uri`, which is known to answer; a server may be asked more than once.

    Raises: TrackingError when there is none and `create` is false, or it does not answer.
    """
    _check_reachable(uri, create)
    mlflow = import_mlflow()
    with explained(f"{uri}: MLflow does not answer"), limited_tries(tries):
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if _is_server(uri):
            client.search_experiments(max_results=1)
    return client


def has_store(uri: str) -> bool:
    """Whether there can be something at `uri`: an SQLite file that is not there yet holds no model."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def import_mlflow() -> ModuleType:
    """MLflow, without its telemetry and its notes of what it does.

    Imported in functions throughout: it takes two seconds, which a worker that records nothing, or a driver that
    finds a mistake in its spec, does not need to spend.
    """
    # MLflow reads the first when it is imported; the second silences GitPython where there is no git.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A job's standard output is for its one line of JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _check_reachable(uri: str, create: bool) -> None:
    """Fail at once where MLflow would try again for minutes: a database that cannot be opened or reached."""
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    if scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        if not create and not path.exists():
            raise TrackingError(
                f"{uri}: there is no such file on {platform.node()}; train a model first, or set MLFLOW_TRACKING_URI "
                "(several machines share an MLflow server, not an SQLite file)"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=ANSWER_WITHIN_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE" if create else "PRAGMA schema_version")
        except (OSError, sqlite3.Error) as error:
            raise TrackingError(
                f"{uri}: the SQLite file cannot be opened: {error}; check the path, the space left and the "
                "permissions, or set MLFLOW_TRACKING_URI"
            ) from None
    elif scheme in DATABASE_PORTS:
        parts = urlsplit(uri)
        try:
            address = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[scheme])
            socket.create_connection(address, ANSWER_WITHIN_SECONDS).close()
        except (OSError, ValueError) as error:
            where = f"{scheme}://…@{parts.hostname}{parts.path}"  # without the password
            raise TrackingError(f"{where}: the database does not answer: {error}; check MLFLOW_TRACKING_URI") from None


@contextlib.contextmanager
def limited_tries(tries: int = 1, seconds: int = ANSWER_WITHIN_SECONDS) -> Iterator[None]:
    """Have MLflow try a request so often, instead of eight times over four minutes, and wait for an answer so long
    each time, or as long as the user's MLFLOW_HTTP_REQUEST_TIMEOUT says where that is longer."""
    # MLflow takes them from nowhere but the environment, which all threads share: nobody else speaks to it meanwhile.
    with _environment:
        before = {name: os.environ.get(name) for name in (_RETRIES, _TIMEOUT)}
        os.environ[_RETRIES] = str(tries - 1)
        os.environ[_TIMEOUT] = str(max(seconds, int(before[_TIMEOUT] or 0)))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into a TrackingError that starts with `what`. One thread at a time."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _environment:  # as the user set it, and not as `limited_tries` of another thread did
            yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(f"{what}: {_first_lines(str(error))}; check MLFLOW_TRACKING_URI and the server") from error


def _first_lines(text: str, most: int = 400) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _local_folder(store: Store) -> Path:
    return store.local_path() if store.is_local else Path.cwd()


# --- the run --------------------------------------------------------------------------------------------------


def start_or_continue_run(
    tracking: Tracking,
    name: str,
    run_name: str,
    run_key: str,
    tags: Mapping[str, str] | None = None,
    known: str | None = None,
) -> str:
    """The id of a run that is RUNNING: `known`, or the newest with this `run_key` that did not finish, or a new one.

    `name` is the spec's or the campaign's; `run_key` is a word of letters, digits, dashes and the like that says
    which run this is. Raises: TrackingError.
    """
    client = connect(tracking.uri)
    with explained(f"{tracking.uri}: the run {run_name!r} cannot be started"):
        # A store that was cleared since no longer has it.
        if known is not None and _has_run(client, known):
            client.update_run(known, status="RUNNING")
            return known
        runs = client.search_runs(
            [tracking.experiment_id],
            filter_string=f"tags.`{RUN_KEY}` = '{run_key}' and attributes.status != 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if runs:
            run_id: str = runs[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            return run_id
        created = client.create_run(
            tracking.experiment_id,
            run_name=run_name,
            tags={
                RUN_KEY: run_key,
                "atelier.name": name,
                "mlflow.source.name": "atelier",
                "mlflow.source.type": "LOCAL",
                "mlflow.user": _user(),
                **({"mlflow.source.git.commit": commit} if (commit := versions().get("git_commit")) else {}),
                **(tags or {}),
            },
        )
        return str(created.info.run_id)


def run_status(tracking_uri: str, run_id: str) -> str:
    """RUNNING, FINISHED, FAILED or KILLED. Raises: TrackingError."""
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: the status of run {run_id} cannot be read"):
        return str(client.get_run(run_id).info.status)


def _has_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def versions() -> dict[str, str]:
    """What ran: this package, Python, the packages that decide results, and the git commit where there is one."""
    found = {"atelier": pipeline.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    commit = git_commit()
    if commit:
        found["git_commit"] = commit
        found["git_dirty"] = str(git_modified()).lower()
    return found


# --- reading ------------------------------------------------------------------------------------------------


def read_artifact(tracking_uri: str, run_id: str, file: str) -> bytes | None:
    """The contents of a file that a run has; None when it has none of that name. Raises: TrackingError."""
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: {file} of run {run_id} cannot be read"), tempfile.TemporaryDirectory() as folder:
        parent, _, _ = file.rpartition("/")
        if file not in {item.path for item in client.list_artifacts(run_id, parent or None)}:
            return None
        return Path(client.download_artifacts(run_id, file, folder)).read_bytes()


def metric_history(tracking_uri: str, run_id: str) -> list[dict[str, float]]:
    """The run's `train/…`, `validation/…` and `time/…` metrics as rows by step, each with its `step`.

    Raises: TrackingError.
    """
    client = connect(tracking_uri)
    rows: dict[int, dict[str, float]] = {}
    with explained(f"{tracking_uri}: the metrics of run {run_id} cannot be read"):
        for key in client.get_run(run_id).data.metrics:
            if key.startswith(("train/", "validation/", "time/")):
                for point in client.get_metric_history(run_id, key):
                    rows.setdefault(point.step, {"step": float(point.step)})[key] = point.value
    return [rows[step] for step in sorted(rows)]


@dataclass(frozen=True)
class RecordedRun:
    """What MLflow keeps of a run besides its metrics; `ended` is None while it goes on. `storage` is the spec's."""

    name: str
    status: str
    tags: dict[str, str]
    started: datetime
    ended: datetime | None
    storage: str


def read_run(tracking_uri: str, run_id: str) -> RecordedRun:
    """A run by its id. Raises: TrackingError, also when there is none."""
    client = connect(tracking_uri)
    with explained(f"{tracking_uri}: run {run_id} cannot be read"):
        run = client.get_run(run_id)
    started, ended = (
        datetime.fromtimestamp(at / 1000, UTC) if at else None for at in (run.info.start_time, run.info.end_time)
    )
    assert started is not None
    tags, storage = dict(run.data.tags), str(run.data.params.get("storage", ""))
    return RecordedRun(str(run.info.run_name), str(run.info.status), tags, started, ended, storage)
