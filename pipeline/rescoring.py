"""Scoring a model again: a registered model or a bundle, on the data it was prepared with.  [ray] [mlflow]

Runs in the driver, for `atelier evaluate`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pipeline.errors import PreparedDataError, SpecError
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import Progress, silent
from pipeline.reading import apply_overrides
from pipeline.spec import make_spec
from pipeline.storage import open_store


def evaluate_job(
    model_uri: str,
    overrides: list[str],
    storage: str | None,
    progress: Progress = silent,
    address: str | None = None,
) -> Outcome:
    """Score a registered model (or a bundle) again on the data it was prepared with; record under its run.

    `overrides` may change `evaluation.…` only. Raises: SpecError, RegistryError, PreparedDataError.
    """
    from pipeline.data.prepared import find_prepared
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.generation.sampling import load_bundle
    from pipeline.ray_session import ray_session
    from pipeline.release.finding import download, find
    from pipeline.release.recorder import RunRecorder
    from pipeline.release.tracking import resolve_uri

    watch = Stopwatch()
    wrong = [override for override in overrides if not override.startswith("evaluation.")]
    if wrong:
        raise SpecError(f"--set {wrong[0]!r}: an evaluation changes evaluation.… only; the model is what it is")
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    found = find(model_uri, tracking_uri)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = download(found, tracking_uri, Path(temporary))
        loaded = load_bundle(bundle)
        spec = make_spec(apply_overrides(loaded.spec.as_dict(), overrides), where=model_uri)
        store = open_store(storage or spec.storage)
        prepared = find_prepared(store, loaded.manifest["key"])
        if prepared is None:
            raise PreparedDataError(
                f"{store.path('prepared', loaded.manifest['key'])}: the data this model was prepared with is not here; "
                "give its storage with --storage, or run 'atelier prepare' with the model's spec"
            )
        progress("start", 0, None, "starting Ray")
        with ray_session(address), watch.stage("evaluate"):
            scores = evaluate(spec, prepared, bundle, progress)
    outcome = Outcome(found.run_id, found.model_uri, found.version, prepared=prepared.key)
    outcome.metrics = {name: score.value for name, score in scores.items()}
    if found.run_id is not None:
        recorder = RunRecorder(tracking_uri, found.run_id)
        stamp = time.strftime("%Y%m%dT%H%M%S")
        recorder.log_json({name: score.as_dict() for name, score in scores.items()}, f"evaluations/{stamp}.json")
    outcome.seconds = watch.with_total()
    return outcome
