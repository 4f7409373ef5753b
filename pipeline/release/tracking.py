"""Tracking: where MLflow records, a run that is started or continued, and the recorder that fills it.  [mlflow]

The driver calls `open_tracking` once, before anyone else, because processes that create the SQLite store together
break each other; it then starts the run. Its id and the tracking URI travel to rank 0, whose `RunRecorder` sends
metrics in batches from a thread of its own, so that training never waits for MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import json
import logging
import os
import platform
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pipeline
from pipeline.errors import TrackingError
from pipeline.spec import RunSpec
from pipeline.storage import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "atelier.run_key"
ANSWER_WITHIN_SECONDS = 5
POINTS_PER_BATCH = 1000
"""MLflow takes at most this many metric points in one request."""

VERSIONED_PACKAGES = ("ray", "torch", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors")
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

logger = logging.getLogger(__name__)


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


def connect(uri: str, create: bool = False) -> MlflowClient:
    """A client of the store at `uri`, which is known to answer.

    Raises: TrackingError when there is none and `create` is false, or it does not answer.
    """
    _check_reachable(uri, create)
    mlflow = import_mlflow()
    with explained(f"{uri}: MLflow does not answer"), _impatient():
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if _is_server(uri):
            client.search_experiments(max_results=1)
    return client


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
def _impatient() -> Iterator[None]:
    """Have MLflow try a request once, for some seconds, instead of seven times over four minutes."""
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_WITHIN_SECONDS),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
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
    """Turn what MLflow and its database raise into a TrackingError that starts with `what`."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
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
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["git_commit"] = commit
        found["git_dirty"] = str(bool(_git("status", "--porcelain", "--", "."))).lower()
    return found


def _git(*arguments: str) -> str:
    folder = str(Path(pipeline.__file__).parent)
    try:
        result = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


# --- the recorder ---------------------------------------------------------------------------------------------


class RunRecorder:
    """Fills one MLflow run from one process; pickles as its settings and starts afresh where it lands.

    Metrics are kept and sent by a thread every `send_every_seconds`, at most 1,000 points a request; while MLflow
    does not answer they wait, and `flush` says so. A point at or before the last step that the run has of its key
    is not sent again: so a resumed training repeats no step. `system_metrics` adds MLflow's own `system/…`
    measures of this machine, their step being the seconds since the run started.
    """

    def __init__(
        self, tracking_uri: str, run_id: str, system_metrics: bool = False, send_every_seconds: float = 5.0
    ) -> None:
        self.tracking_uri, self.run_id = tracking_uri, run_id
        self.system_metrics, self.send_every_seconds = system_metrics, send_every_seconds
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._started_at = time.time()
        self._waiting: list[tuple[str, float, int, int]] = []
        self._queue_lock = threading.Lock()
        self._send_lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RunRecorder, (self.tracking_uri, self.run_id, self.system_metrics, self.send_every_seconds)

    def start(self) -> None:
        """Start the sending thread; the first `log_metrics` does it too."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="atelier-recorder", daemon=True)
            self._thread.start()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep `values` at `step` for the next batch; the steps of a key increase."""
        now = int(time.time() * 1000)
        with self._queue_lock:
            self._waiting.extend((key, float(value), now, step) for key, value in values.items())
        self.start()

    def flush(self) -> None:
        """Send what waits, now. Raises: TrackingError; what was not sent is kept."""
        with self._send_lock, self._explained("metrics"):
            client = self._connected()
            from mlflow.entities import Metric

            while True:
                with self._queue_lock:
                    batch = self._waiting[:POINTS_PER_BATCH]
                if not batch:
                    return
                points, last = [], dict(self._last_step)
                for key, value, timestamp, step in batch:
                    if step > last.get(key, -1):
                        last[key] = step
                        points.append(Metric(key, value, timestamp, step))
                if points:
                    client.log_batch(self.run_id, metrics=points)
                # Only now: had the request failed, the same points would wait for the next try.
                with self._queue_lock:
                    del self._waiting[: len(batch)]
                self._last_step = last

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record flat parameters. MLflow keeps a parameter's first value, so one the run has is left as it is."""
        from mlflow.entities import Param

        with self._explained("parameters"):
            client = self._connected()
            known = client.get_run(self.run_id).data.params
            new = [Param(key, _cut(str(value))) for key, value in params.items() if key not in known]
            for first in range(0, len(new), 100):  # MLflow takes at most 100 in one request
                client.log_batch(self.run_id, params=new[first : first + 100])

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a tag the run has gets the new value."""
        with self._explained("tags"):
            for key, value in tags.items():
                self._connected().set_tag(self.run_id, key, _cut(str(value)))

    def log_text(self, text: str, file: str) -> None:
        """Record `text` as the artifact `file`, such as `samples/00.txt`."""
        self.log_bytes(text.encode(), file)

    def log_json(self, value: Any, file: str) -> None:
        self.log_bytes(json.dumps(value, indent=1, ensure_ascii=False).encode(), file)

    def log_bytes(self, data: bytes, file: str) -> None:
        """Record the contents of a file, such as a PNG or a WAV, as the artifact `file`."""
        name = PurePosixPath(file)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name.name)
            path.write_bytes(data)
            self.log_file(path, "" if str(name.parent) == "." else str(name.parent))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Record a local file under its own name in the artifact folder `folder`."""
        with self._explained(f"the file {path.name}"):
            self._connected().log_artifact(self.run_id, str(path), folder or None)

    def log_folder(self, path: Path, folder: str = "") -> None:
        """Record what is in a local folder in the artifact folder `folder`."""
        with self._explained(f"the folder {path.name}"):
            self._connected().log_artifacts(self.run_id, str(path), folder or None)

    def close(self) -> None:
        """Stop the thread and send what waits; the run's status stays. Raises: TrackingError."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        self.flush()

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close, and end the run with `status`. Raises: TrackingError."""
        try:
            self.close()
        finally:
            with self._explained(f"status {status}"):
                self._connected().set_terminated(self.run_id, status)

    def _connected(self) -> MlflowClient:
        with self._send_lock:
            if self._client is None:
                client = connect(self.tracking_uri)
                run = client.get_run(self.run_id)
                # `_metric_objs` holds the last step of each key, as MLflow's own system monitor reads it; the
                # public way is to fetch every point of every key.
                self._last_step = {metric.key: metric.step for metric in run.data._metric_objs}
                self._started_at = run.info.start_time / 1000
                self._client = client
            return self._client

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        with explained(f"{self.tracking_uri}: {what} of run {self.run_id} cannot be recorded"):
            yield

    def _run(self) -> None:
        monitors = _system_monitors() if self.system_metrics else []
        told = False
        while not self._stop.wait(self.send_every_seconds):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values.update(monitor.aggregate_metrics())
                monitor.clear_metrics()
            if values:
                self._queue_system(values)
            try:
                self.flush()
            except TrackingError as error:
                # A training outlives a server's restart: the points wait, and `flush` raises if they still do.
                if not told:
                    logger.warning("%s; metrics are kept until it answers", error)
                told = True
            else:
                told = False

    def _queue_system(self, values: Mapping[str, float]) -> None:
        now = time.time()
        step = max(0, int(now - self._started_at))
        with self._queue_lock:
            self._waiting.extend((f"system/{key}", value, int(now * 1000), step) for key, value in values.items())


def _system_monitors() -> list[Any]:
    """MLflow's collectors of processor, memory, disk, network and, where NVIDIA's library answers, GPU measures."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())
    return monitors


def _cut(value: str, most: int = 5000) -> str:
    """`value` within what MLflow takes (6,000 characters for a parameter, 8,000 for a tag)."""
    return value if len(value) <= most else value[: most - 1] + "…"


# --- reading --------------------------------------------------------------------------------------------------


def metric_history(tracking_uri: str, run_id: str) -> list[dict[str, float]]:
    """The run's `train/…` and `validation/…` metrics as rows by step, each with its `step`. Raises: TrackingError."""
    client = connect(tracking_uri)
    rows: dict[int, dict[str, float]] = {}
    with explained(f"{tracking_uri}: the metrics of run {run_id} cannot be read"):
        for key in client.get_run(run_id).data.metrics:
            if key.startswith(("train/", "validation/")):
                for point in client.get_metric_history(run_id, key):
                    rows.setdefault(point.step, {"step": float(point.step)})[key] = point.value
    return [rows[step] for step in sorted(rows)]
