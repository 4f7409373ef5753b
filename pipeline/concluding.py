"""What follows a training: scores, the verdict on them, samples, the registered model and the page.  [mlflow]

Runs in the driver, from a finished bundle; a call after a crash does it again, and registers no second version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.prepared import Prepared
from pipeline.outcome import Outcome, Stopwatch
from pipeline.progress import Progress
from pipeline.spec import RunSpec
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.evaluation.metric import Score, Scores
    from pipeline.evaluation.verdict import Verdict
    from pipeline.generation.sampling import Bundle
    from pipeline.release.recorder import RunRecorder
    from pipeline.release.tracking import Tracking


@dataclass(frozen=True)
class Run:
    """A run that was trained: what it is of, where it is recorded, and its `key`, the name of its folder."""

    spec: RunSpec
    store: Store
    prepared: Prepared
    tracking: Tracking
    run_id: str
    key: str
    recorder: RunRecorder


def conclude(run: Run, bundle: Path, progress: Progress, watch: Stopwatch) -> Outcome:
    """Score, judge, record, register and report the model in the folder `bundle`."""
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.metric import Scores
    from pipeline.generation.sampling import load_bundle
    from pipeline.inheriting import facts_of, score_forgetting
    from pipeline.release.tracking import metric_history
    from pipeline.reporting import verdict_on

    spec = run.spec
    outcome = Outcome(run_id=run.run_id, prepared=run.prepared.key)
    with watch.stage("evaluate"):
        scores = evaluate(spec, run.prepared, bundle, progress)
        if spec.training.init_from is not None:
            forgotten = score_forgetting(spec, run.store, run.tracking.uri, run.key, bundle, progress)
            scores = Scores(scores | forgotten, scores.refused | forgotten.refused)
    verdict = verdict_on(scores, spec.evaluation.split)
    outcome.metrics = {name: score.value for name, score in scores.items()}
    outcome.verdict = verdict.summary() if verdict else None
    _record_scores(run, scores, verdict)
    outcome.warnings = _record_health(run)

    progress("report", 0, None, "samples, report")
    history = metric_history(run.tracking.uri, run.run_id)
    speeds = [row["train/examples_per_second"] for row in history if "train/examples_per_second" in row]
    outcome.examples_per_second = round(sorted(speeds)[len(speeds) // 2], 1) if speeds else None
    with watch.stage("report"):
        loaded = load_bundle(bundle)
        samples, asked, sheet = _record_samples(run, loaded)
    gate: dict[str, Any] | None = None
    if spec.registry.name is not None:
        progress("register", 0, None, spec.registry.name)
        with watch.stage("register"):
            outcome.model_uri, outcome.model_version, gate = _register(run, bundle, scores, verdict)
    with watch.stage("report"):
        found = {"gate": gate, "warnings": outcome.warnings, "inherited": facts_of(run.store, run.key) or None}
        outcome.report = _write_page(run, loaded, bundle, history, scores, samples, asked, sheet, found, watch)
    return outcome


def _record_scores(run: Run, scores: Scores, verdict: Verdict | None) -> None:
    """Into the run's folder and MLflow, with the corpus's own networks whose features or classes they were taken in."""
    recorder, as_dicts = run.recorder, {name: score.as_dict() for name, score in scores.items()}
    run.store.write_json(as_dicts, "runs", run.key, "scores.json")
    recorder.log_metrics({name: score.value for name, score in scores.items()}, 0)
    recorder.log_json(as_dicts, "scores.json")
    if scores.refused:
        recorder.log_json(scores.refused, "scores_refused.json")
    if verdict is not None:
        run.store.write_json(verdict.as_dict(), "runs", run.key, "verdict.json")
        recorder.log_json(verdict.as_dict(), "verdict.json")
    kept = run.prepared.store
    used = {str(score.protocol.get("extractor")).split(",")[0] for score in scores.values()}
    for name in kept.list_names("extractors"):
        if name.rsplit(".", 1)[0] in used:
            recorder.log_bytes(kept.read_bytes("extractors", name), f"extractors/{name}")


def _record_health(run: Run) -> list[dict[str, Any]]:
    """The warnings of the run's training, which are recorded in MLflow too."""
    if not run.store.exists("runs", run.key, "health.json"):  # trained before there were warnings
        return []
    warnings: list[dict[str, Any]] = run.store.read_json("runs", run.key, "health.json")
    run.recorder.log_json(warnings, "health.json")
    if warnings:
        run.recorder.log_tags({"atelier.warnings": ", ".join(warning["kind"] for warning in warnings)})
    return warnings


def _record_samples(run: Run, loaded: Bundle) -> tuple[list[Any], list[str], bytes | None]:
    """Draw samples and record them: pictures, texts or playable sound; the samples, what each was asked for, and a
    picture of them."""
    from pipeline.generation.sampling import overview
    from pipeline.reporting import draw_for_report

    samples, asked = draw_for_report(loaded)
    sheet = overview(samples, loaded.layout.modality, loaded.layout.sample_rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        for number, sample in enumerate(samples[:16]):
            Path(folder, f"{number:02d}{loaded.codec.extension}").write_bytes(loaded.codec.to_bytes(sample))
        if sheet is not None:
            Path(folder, "overview.png").write_bytes(sheet)
        run.recorder.log_folder(Path(folder), "samples")
    return samples, asked, sheet


def _register(
    run: Run, bundle: Path, scores: Mapping[str, Score], verdict: Verdict | None
) -> tuple[str, str, dict[str, Any] | None]:
    """The model's URI and version, and what the gate said of it where it decided: of a first model."""
    from pipeline.release.champion import find_champion
    from pipeline.release.gate import Evidence, decide
    from pipeline.release.registry import register

    name = run.spec.registry.name
    assert name is not None
    found = Evidence(scores, findings=None if verdict is None else verdict.findings)
    decision = decide(run.spec.release, found, None)
    registered = register(run.tracking, run.run_id, bundle, name, scores, decision)
    # Where another version is champion, a contest decides, not this run.
    champion = find_champion(run.tracking.uri, name)
    decided = champion is None or champion.version == registered.version
    return registered.model_uri, registered.version, decision.as_dict() if decided and decision.rules else None


def _write_page(
    run: Run,
    loaded: Bundle,
    bundle: Path,
    history: list[dict[str, float]],
    scores: Scores,
    samples: list[Any],
    asked: list[str],
    sheet: bytes | None,
    found: dict[str, Any],
    watch: Stopwatch,
) -> str:
    """Write the run's page, with what was `found` of its training and release; where it is."""
    from pipeline.release.tracking import versions
    from pipeline.report.page import build_report
    from pipeline.reporting import looked_into

    page = build_report(
        None,
        spec=run.spec,
        manifest=run.prepared.manifest,
        history=history,
        scores=scores,
        samples=samples,
        asked=asked,
        overview_png=sheet,
        seconds=watch.with_total(),
        versions=versions(),
        **found,
        **looked_into(loaded, run.prepared, bundle, scores),
    )
    run.store.write_bytes(page.encode(), "runs", run.key, "report.html")
    run.recorder.log_text(page, "report.html")
    return run.store.path("runs", run.key, "report.html")
