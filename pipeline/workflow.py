"""The whole path of one run: prepare, train, score, record, register, report.  [ray] [mlflow]

Runs in the driver. Each stage leaves what the next needs in the storage, so that the same call after a crash
goes on where it stopped: a prepared set is found, a training resumes, a finished bundle is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.beside import Beside
from pipeline.claim import Claim
from pipeline.errors import AtelierError
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import Progress, silent
from pipeline.reading import flatten
from pipeline.spec import RunSpec, TransferSpec
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.data.records import Corpus
    from pipeline.release.recorder import RunRecorder
    from pipeline.release.tracking import Tracking

NOT_IDENTITY: Any = {
    "storage": True,
    "tracking": True,
    "registry": True,
    "release": True,
    "evaluation": True,
    "training": {
        "num_workers",
        "threads_per_worker",
        "placement",
        "use_gpu",
        "micro_batch",
        "sharding",
        "channels_last",
        "compile",
        "tf32",
        "report_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "validate_every",
        "keep_checkpoints",
        "max_failures",
        "resize_seconds",
        "stop_seconds",
        "load",
        "memory_megabytes",
        "profile",
    },
}
"""Parts of a spec that do not make it another run: with them changed, an unfinished run is still resumed."""

EXAMPLES = "examples.png"
"""In the folder of a prepared set: what its examples look like."""


def run_key(spec: RunSpec, prepared_key: str, store: Store) -> str:
    """The folder name of the run: that of the newest unfinished run of this spec and data, or a new one."""
    identity = json.dumps([spec.model_dump(mode="json", exclude=NOT_IDENTITY), prepared_key], sort_keys=True)
    stem = f"{spec.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}-"
    numbers = [int(name.removeprefix(stem)) for name in store.list_names("runs") if name.startswith(stem)]
    newest = max(numbers, default=0)
    if newest and read_state(store, f"{stem}{newest}").get("status") != "finished":
        return f"{stem}{newest}"
    return f"{stem}{newest + 1}"


def read_state(store: Store, key: str) -> dict[str, Any]:
    """What the run's folder says of it; empty when it has not begun."""
    if not store.exists("runs", key, "run.json"):
        return {}
    state: dict[str, Any] = store.read_json("runs", key, "run.json")
    return state


def prepare_job(spec: RunSpec, progress: Progress = silent, address: str | None = None) -> tuple[Prepared, Stopwatch]:
    """Prepare the corpus of `spec`, or find it prepared."""
    from pipeline.ray_session import ray_session

    watch = Stopwatch()
    store = open_store(spec.storage)
    store.check_writable()
    corpus = open_base_corpus(spec)
    hashing = Beside(corpus.fingerprint)  # its files are read while Ray starts
    progress("start", 0, None, "starting Ray, reading the corpus's fingerprint")
    start = time.time()
    with ray_session(address):
        watch.add("ray_start", time.time() - start)
        with watch.stage("prepare"):
            hashing.result()
        _begin_new(spec, store, corpus)
        from pipeline.data.prepare import prepare

        with watch.stage("prepare"):
            prepared = prepare(spec, store, progress, corpus)
        with watch.stage("examples"):
            _show_examples(prepared)
    return prepared, watch


def _begin_new(spec: RunSpec, store: Store, corpus: Corpus) -> None:
    """Let workers start for a set that is not there yet, while the driver imports what it needs to prepare it."""
    from pipeline.data.manifest import FOLDER, MANIFEST, prepared_key

    if not store.exists(FOLDER, prepared_key(spec, corpus), MANIFEST):
        from pipeline.data.spread import begin

        begin()


def _show_examples(prepared: Prepared) -> None:
    """Put a picture of training examples beside the set: pictures, or sounds as waveform and spectrogram."""
    from pipeline.data.examples import training_examples
    from pipeline.generation.sampling import overview

    layout = prepared.layout
    if layout.modality == "text" or prepared.store.exists(EXAMPLES):
        return
    sheet = overview(training_examples(prepared), layout.modality, layout.sample_rate_hz)
    if sheet is not None:
        prepared.store.write_bytes(sheet, EXAMPLES)


def train_job(
    spec: RunSpec,
    progress: Progress = silent,
    address: str | None = None,
    since: float | None = None,
    key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Prepare, train, score, record, register and report `spec`; or finish what an earlier call began.

    Without a `key` a finished run of this spec and data is followed by another. With one the run has that name, and
    when it is finished its outcome is returned: campaigns and retrainings call again after a crash, and train once.
    `tags` go to the MLflow run. Raises: AtelierError; the MLflow run is then FAILED, or KILLED when the user stopped
    it, and the same call continues it; RunBusyError where another process trains this run, which is left alone.
    """
    watch = Stopwatch(since)
    if since is not None:
        watch.add("imports", time.time() - since)
    store = open_store(spec.storage)
    store.check_writable()
    if key is not None and (done := finished_outcome(store, key)) is not None:
        return done
    corpus = open_base_corpus(spec)
    hashing = Beside(corpus.fingerprint)
    progress("start", 0, None, "starting Ray, opening MLflow")

    def tracking_opened() -> Tracking:
        from pipeline.inheriting import check_origin
        from pipeline.release.tracking import open_tracking

        tracking = open_tracking(spec, store)
        check_origin(spec, tracking.uri)
        return tracking

    opening = Beside(tracking_opened)
    start = time.time()
    from pipeline.ray_session import end_data_actors, ray_session

    with ray_session(address):
        watch.add("ray_start", time.time() - start)
        try:
            with watch.stage("prepare"):
                hashing.result()
            _begin_new(spec, store, corpus)
        except BaseException:
            opening.join()  # not to leave a new store in the middle of its migrations
            raise
        from pipeline.data.prepare import prepare

        with watch.stage("tracking"):
            tracking = opening.result()
        with watch.stage("prepare"):
            prepared = prepare(spec, store, progress, corpus)
            end_data_actors()
            prepared.verify(progress)
        key = key or run_key(spec, prepared.key, store)
        with Claim(store.child("runs", key), progress) as claim:
            if (done := finished_outcome(store, key)) is not None:  # by the one that was waited for
                return done
            return _train_and_after(spec, store, prepared, tracking, key, tags or {}, progress, watch, claim)


def finished_outcome(store: Store, key: str) -> Outcome | None:
    """What the run `key` told when it finished; None when it has not."""
    state = read_state(store, key)
    return Outcome(**state["outcome"]) if state.get("status") == "finished" else None


def open_base_corpus(spec: RunSpec) -> Corpus:
    """The corpus of a spec; one that is not there is found before Ray is started. Raises: CorpusError."""
    from pipeline.data.codec import CODECS
    from pipeline.data.corpus import open_corpus

    return open_corpus(spec.data.source, CODECS[spec.data.codec.kind](spec.data.codec).modality)


def _train_and_after(
    spec: RunSpec,
    store: Store,
    prepared: Prepared,
    tracking: Tracking,
    key: str,
    tags: Mapping[str, str],
    progress: Progress,
    watch: Stopwatch,
    claim: Claim,
) -> Outcome:
    from pipeline.release.recorder import RunRecorder, only_logged
    from pipeline.release.tracking import start_or_continue_run

    ours = {"atelier.prepared": prepared.key, "atelier.run": store.path("runs", key)}
    with watch.stage("tracking"):
        known = read_state(store, key).get("run_id")
        run_id = start_or_continue_run(tracking, spec.name, key, key, {**ours, **tags}, known)
    recorder = RunRecorder(tracking.uri, run_id)
    state = {"status": "running", "run_id": run_id, "spec": spec.as_dict(), "prepared": prepared.key}
    store.write_json(state, "runs", key, "run.json")
    try:
        outcome = _stages(spec, store, prepared, tracking, run_id, key, recorder, progress, watch, claim)
    except BaseException as error:  # the edge of the run: recorded whatever it was, and raised
        claim.check()  # the MLflow run is another's now
        if isinstance(error, AtelierError):
            with only_logged():
                recorder.log_tags({"atelier.error": str(error)[:500]})
        with only_logged():
            recorder.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    recorder.finish("FINISHED")
    outcome.seconds = watch.with_total()
    store.write_json({**state, "status": "finished", "outcome": vars(outcome)}, "runs", key, "run.json")
    return outcome


def _stages(
    spec: RunSpec,
    store: Store,
    prepared: Prepared,
    tracking: Tracking,
    run_id: str,
    key: str,
    recorder: RunRecorder,
    progress: Progress,
    watch: Stopwatch,
    claim: Claim,
) -> Outcome:
    import ray

    from pipeline.concluding import Run, conclude

    # Recorded beside the launch of the workers, which takes longer and needs none of it.
    noting = Beside(lambda: _record_inputs(spec, prepared, recorder))
    folder = store.child("runs", key, "bundle")
    with tempfile.TemporaryDirectory() as temporary:
        bundle = folder.local_path() if store.is_local else Path(temporary, "bundle")
        if not folder.exists("checksums.json"):
            _train(spec, store, prepared, tracking, run_id, key, bundle, recorder, progress, watch, claim)
            if not store.is_local:
                _copy_folder(bundle, folder)
        elif not store.is_local:
            fetch_folder(folder, bundle)
        noting.result()

        run = Run(spec, store, prepared, tracking, run_id, key, recorder)
        outcome = conclude(run, bundle, progress, watch)
    ray.experimental.internal_kv._internal_kv_del(key.encode(), namespace=b"atelier")
    return outcome


def _record_inputs(spec: RunSpec, prepared: Prepared, recorder: RunRecorder) -> None:
    from pipeline.release.tracking import versions

    recorder.log_params(flatten(spec.as_dict()))
    recorder.log_text(spec.as_yaml(), "spec.yaml")
    recorder.log_json(prepared.manifest.as_dict(), "manifest.json")
    recorder.log_json(versions(), "versions.json")


def _train(
    spec: RunSpec,
    store: Store,
    prepared: Prepared,
    tracking: Tracking,
    run_id: str,
    key: str,
    bundle: Path,
    recorder: RunRecorder,
    progress: Progress,
    watch: Stopwatch,
    claim: Claim,
) -> None:
    from pipeline.generation.sampling import save_bundle
    from pipeline.inheriting import take_over
    from pipeline.models import build_model
    from pipeline.training.freezing import Freezing
    from pipeline.training.in_process import train_in_process
    from pipeline.training.launch import train_with_ray

    launch = train_in_process if spec.training.num_workers == 0 else train_with_ray
    begun = time.time()
    initial = take_over(spec, store, prepared, tracking.uri, key, recorder, progress)
    if spec.training.transfer != TransferSpec():
        Freezing(build_model(spec, prepared.layout), spec.training.transfer)  # its mistakes are found here
    trained = launch(spec, prepared, store, key, tracking.uri, run_id, progress, initial_weights=initial)
    claim.check()
    first_step_at = trained.first_step_at or begun
    watch.add("launch", first_step_at - begun)
    watch.add("to_first_step", first_step_at - watch.started)
    watch.add("train", time.time() - first_step_at)
    # Before the bundle, with which the training counts as done.
    store.write_json(trained.warnings, "runs", key, "health.json")
    save_bundle(bundle, spec, prepared.manifest.as_dict(), trained.weights)


def _copy_folder(folder: Path, store: Store) -> None:
    for path in sorted(folder.iterdir()):
        if path.name != "checksums.json":
            store.write_bytes(path.read_bytes(), path.name)
    store.write_bytes((folder / "checksums.json").read_bytes(), "checksums.json")


def fetch_folder(store: Store, folder: Path) -> None:
    """Copy the files of a folder of the storage to this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in store.list_names():
        (folder / name).write_bytes(store.read_bytes(name))
