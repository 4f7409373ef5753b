"""The recorder: fills an MLflow run from the process that has something to record.  [mlflow]

Metrics go out in batches from a thread of its own, so that training never waits for MLflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import TrackingError
from pipeline.release.tracking import connect, explained, limited_tries

if TYPE_CHECKING:
    from mlflow import MlflowClient

POINTS_PER_BATCH = 1000
"""MLflow takes at most this many metric points in one request."""
SEND_WITHIN_SECONDS = 10
LAST_TRIES = 5
"""Of a server when the recorder closes, 0, 4, 8 and 16 s apart; before, the next batch is the next try."""

Point = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_logged() -> Iterator[None]:
    """Log a TrackingError of the block and go on: where another failure is under way, that is the one to raise."""
    try:
        yield
    except TrackingError as error:
        logger.warning("%s", error)


class RunRecorder:
    """Fills one MLflow run from one process; pickles as its settings and starts afresh where it lands.

    Metrics are kept and sent by a thread every `send_every_seconds`, at most 1,000 points a request; while MLflow
    does not answer they wait, and `flush` says so. A point at or before the last step that the run has of its key
    is not sent again: so a resumed training repeats no step. Points that were `unsent` when a checkpoint was taken are
    in it, and a resumed training's recorder begins with them (`begin_with`): so none is lost with the process either.
    `system_metrics` adds MLflow's own `system/…`
    measures of this machine, their step being the seconds since the run started. As a context it closes itself, and
    raises TrackingError only where the block did not fail.
    """

    def __init__(
        self, tracking_uri: str, run_id: str, system_metrics: bool = False, send_every_seconds: float = 5.0
    ) -> None:
        self.tracking_uri, self.run_id = tracking_uri, run_id
        self.system_metrics, self.send_every_seconds = system_metrics, send_every_seconds
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._started_at = time.time()
        self._waiting: list[Point] = []
        self._queue_lock = threading.Lock()
        self._send_lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RunRecorder, (self.tracking_uri, self.run_id, self.system_metrics, self.send_every_seconds)

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.nullcontext() if kind is None else only_logged():
            self.close()

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

    def unsent(self) -> list[Point]:
        """What waits, oldest first."""
        with self._queue_lock:
            return list(self._waiting)

    def begin_with(self, points: Iterable[Sequence[Any]]) -> None:
        """Send these before all others: what was `unsent` of the process that this one goes on for."""
        with self._queue_lock:
            self._waiting[:0] = [(str(key), float(value), int(at), int(step)) for key, value, at, step in points]

    def flush(self, tries: int = 1) -> None:
        """Send what waits, now. Raises: TrackingError; what was not sent is kept."""
        # In this order, as everywhere: who is `explained` may want the other lock to connect.
        with self._explained("metrics"), self._send_lock, limited_tries(tries, SEND_WITHIN_SECONDS):
            client = self._connected(tries)
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
        self.flush(LAST_TRIES)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close, and end the run with `status`. Raises: TrackingError."""
        try:
            self.close()
        finally:
            with self._explained(f"status {status}"):
                self._connected().set_terminated(self.run_id, status)

    def _connected(self, tries: int = 1) -> MlflowClient:
        with self._send_lock:
            if self._client is None:
                client = connect(self.tracking_uri, tries=tries)
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
