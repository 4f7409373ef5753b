"""What pages are made of: samples and latents of a bundle, and what runs left behind.  [mlflow]

Runs in the driver: at the end of a run, and for `atelier report`, which makes the page of a run once more or compares
several. What a run left is gathered from its folder in the storage and from MLflow; samples are drawn again from its
bundle, with its own seed, so they are those of its report.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegistryError
from pipeline.progress import Progress, silent
from pipeline.spec import make_spec
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.evaluation.latent import LatentView
    from pipeline.evaluation.score import Score
    from pipeline.evaluation.verdict import Verdict
    from pipeline.generation.sampling import Bundle
    from pipeline.report.comparison import RunFacts

NUM_SAMPLES = 64
"""Samples drawn for the MLflow run and the report."""
NUM_SAMPLES_RECURRENT = 8
BUNDLE_DONE = "checksums.json"


def draw_for_report(loaded: Bundle) -> tuple[list[Any], list[str]]:
    """The samples that a run records and its report shows, and what each was asked for in words (nothing of a model
    without conditions): a function of the bundle alone. Labels and prompts take turns."""
    from pipeline.generation.asking import Takes, in_turn, with_wishes
    from pipeline.generation.sampling import SamplingOptions, draw

    spec, layout = loaded.spec, loaded.layout
    recurrent = spec.model.family.kind == "rnn"
    count = NUM_SAMPLES_RECURRENT if recurrent else NUM_SAMPLES
    options = SamplingOptions(length=512 if recurrent and layout.continuous else None)
    if not Takes.of(spec, layout):
        return draw(loaded, count, spec.seed, options), []
    wishes = in_turn(spec, layout, count)
    return draw(loaded, count, spec.seed, with_wishes(layout, wishes, options)), [wish.in_words() for wish in wishes]


def look_into_latents(loaded: Bundle, prepared: Prepared) -> LatentView | None:
    """The latent space of a model that has one, with the held-out examples of its prepared set."""
    from pipeline.evaluation.latent import MOST_EXAMPLES, look_into

    if loaded.spec.model.family.kind == "rnn":
        return None
    held_out = prepared.load_split(loaded.spec.evaluation.split, max_rows=MOST_EXAMPLES)
    return look_into(loaded.model, loaded.codec, prepared.layout, held_out, loaded.spec.seed)


def verdict_on(scores: Mapping[str, Score], split: str) -> Verdict | None:
    """Whether the model is good, varied and new by its scores on `split`; None where none of them says so."""
    from pipeline.evaluation.evidence import evidence_of
    from pipeline.evaluation.verdict import judge

    evidence = evidence_of(scores, f"{split}/")
    return judge(evidence) if evidence else None


def looked_into(loaded: Bundle, prepared: Prepared, folder: Path | None, scores: Mapping[str, Score]) -> dict[str, Any]:
    """What a page shows of a model beside its scores, as keyword arguments of `build_report`. `folder` is the bundle's;
    without it no sample is drawn again to stand beside the training example that it is like."""
    from pipeline.data.examples import training_examples
    from pipeline.evaluation.closest import closest_pairs
    from pipeline.evaluation.definitions import DEFINITIONS
    from pipeline.evaluation.surprise import can_tell_surprise, held_out_passage, surprise

    split = loaded.spec.evaluation.split
    verdict = verdict_on(scores, split)
    curves = {
        DEFINITIONS[key.partition("/")[2]].title: [
            (x, value, *(interval or ()))
            for x, value, interval in zip(score.curve.x, score.curve.values, score.curve.intervals, strict=True)
        ]
        for key, score in scores.items()
        if score.curve is not None and not key.endswith("_held_out")
    }
    told = None
    if can_tell_surprise(loaded.model, loaded.layout) and loaded.codec.state() == prepared.codec.state():
        tokens, skip = held_out_passage(prepared.load_split(split), loaded.layout)
        told = [(one.piece, one.nats) for one in surprise(loaded.model, loaded.codec, loaded.layout, tokens, skip)]
    return {
        "examples": training_examples(prepared),
        "latent": look_into_latents(loaded, prepared),
        "verdict": verdict.as_dict() if verdict else None,
        "nearest": closest_pairs(loaded.spec, prepared, folder, scores) or None if folder is not None else None,
        "temperature": curves or None,
        "surprise": told,
    }


@dataclass(frozen=True)
class Place:
    """Where what a run left is: its folder in the storage, its id in MLflow, the model that was asked for."""

    label: str
    folder: Store | None = None
    run_id: str | None = None
    model_uri: str | None = None


@dataclass(frozen=True)
class Gathered:
    """A run's facts with what only its own report shows."""

    facts: RunFacts
    manifest: dict[str, Any]
    versions: dict[str, Any]
    ended: datetime | None
    bundle: Bundle | None
    folder: Path | None
    """Where the bundle lies on this machine, if it does."""
    inherited: dict[str, Any]
    """What it took over from the model that it began with; empty for one that began with new weights."""
    warnings: list[dict[str, Any]] | None = None
    """Of the training's health; None where none were recorded."""


def report_job(references: Sequence[str], out: Path, storage: str | None, progress: Progress = silent) -> list[str]:
    """Write the page of one run, or of several side by side, to `out`; the runs' labels.

    A reference is an MLflow run's id, the name of a folder under `runs` in the storage, such a folder, or a model
    (`models:/NAME@champion`, `runs:/ID`). Raises: RegistryError with what there is, ComparisonError, TrackingError,
    StorageError.
    """
    from pipeline.release.tracking import resolve_uri
    from pipeline.report.comparison import build_comparison

    store = open_store(storage or "storage")
    tracking_uri = resolve_uri(store)
    places = [find_run(reference, store, tracking_uri) for reference in references]
    gathered = []
    for done, place in enumerate(places):
        progress("gather", done, len(places), place.label)
        gathered.append(gather(place, store, tracking_uri))
    progress("gather", len(places), len(places), "")
    if len(gathered) == 1:
        _report_of_one(gathered[0], store, out)
    else:
        build_comparison(out, [one.facts for one in gathered])
    return [one.facts.label for one in gathered]


def find_run(reference: str, store: Store, tracking_uri: str) -> Place:
    """Which run or model is meant. Raises: RegistryError naming what there is, TrackingError."""
    from pipeline.release.finding import find
    from pipeline.release.tracking import read_run

    if reference.startswith(("models:/", "runs:/")):
        found = find(reference, tracking_uri)
        place = _place_of(found.run_id, store, tracking_uri) if found.run_id else Place(found.model_uri)
        label = f"{found.name} {found.version}" if found.name else place.label
        return Place(label, place.folder, found.run_id, found.model_uri)
    for folder in (store.child("runs", reference), open_store(reference)):
        if folder.exists("run.json"):
            return Place(Path(folder.root).name, folder, folder.read_json("run.json").get("run_id"))
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        read_run(tracking_uri, reference)
        return _place_of(reference, store, tracking_uri)
    names = ", ".join(sorted(store.list_names("runs"))[-8:]) or "none"
    raise RegistryError(
        f"run {reference!r}: {store.path('runs')} has no such folder (there: {names}); write one of these, the id of "
        "an MLflow run, or a model such as models:/NAME@champion, and --storage where the runs are"
    )


def _place_of(run_id: str, store: Store, tracking_uri: str) -> Place:
    from pipeline.release.tracking import read_run

    run = read_run(tracking_uri, run_id)
    key = run.tags.get("atelier.run", "").rstrip("/").rpartition("/")[2]
    folder = store.child("runs", key) if key and store.exists("runs", key, "run.json") else None
    return Place(key or run_id[:8], folder, run_id)


def gather(place: Place, store: Store, tracking_uri: str) -> Gathered:
    """What the run at `place` left. Raises: RegistryError when it left neither a model nor a prepared set."""
    from pipeline.data.prepared import find_prepared
    from pipeline.evaluation.metric import Score
    from pipeline.generation.sampling import load_bundle
    from pipeline.inheriting import FACTS as INHERITED
    from pipeline.release.finding import fetch
    from pipeline.release.tracking import metric_history, read_artifact, read_run
    from pipeline.report.comparison import RunFacts
    from pipeline.workflow import fetch_folder

    state = place.folder.read_json("run.json") if place.folder else {}
    run = read_run(tracking_uri, place.run_id) if place.run_id else None
    with tempfile.TemporaryDirectory() as temporary:
        loaded, folder = None, None
        if place.model_uri is not None:
            folder = fetch(place.model_uri, tracking_uri, Path(temporary))
        elif place.folder is not None and place.folder.exists("bundle", BUNDLE_DONE):
            folder = place.folder.local_path("bundle") if place.folder.is_local else Path(temporary)
            if not place.folder.is_local:
                fetch_folder(place.folder.child("bundle"), folder)
        if folder is not None:
            loaded = load_bundle(folder)
            folder = None if folder.is_relative_to(temporary) else folder

    def recorded(name: str) -> Any:
        if place.folder is not None and place.folder.exists(name):
            return place.folder.read_json(name)
        data = read_artifact(tracking_uri, place.run_id, name) if place.run_id else None
        return json.loads(data) if data is not None else {}

    if loaded is not None:
        spec, manifest = loaded.spec, loaded.manifest
    else:
        key = run.tags.get("atelier.prepared") if run else None
        prepared = find_prepared(store, key) if key else None
        if prepared is None or "spec" not in state:
            raise RegistryError(
                f"run {place.label!r}: it made no model yet, and its prepared set is not in {store.uri}"
            )
        spec, manifest = make_spec(state["spec"], where=place.label), prepared.manifest.as_dict()
    outcome = state.get("outcome", {})
    samples, asked = draw_for_report(loaded) if loaded is not None else ([], [])
    facts = RunFacts(
        label=place.label,
        spec=spec,
        prepared=manifest["key"],
        layout=manifest["layout"],
        history=metric_history(tracking_uri, place.run_id) if place.run_id else [],
        scores={key: Score.from_dict(value) for key, value in recorded("scores.json").items()},
        samples=samples,
        asked=asked,
        seconds=outcome.get("seconds", {}),
        model_uri=place.model_uri or outcome.get("model_uri"),
    )
    # An empty object stands for a record that is not there; an empty list for no warning.
    health = recorded("health.json")
    warnings = health if isinstance(health, list) else None
    ended = run.ended if run else None
    return Gathered(facts, manifest, recorded("versions.json"), ended, loaded, folder, recorded(INHERITED), warnings)


def _report_of_one(gathered: Gathered, store: Store, out: Path) -> None:
    from pipeline.data.prepared import find_prepared
    from pipeline.report.page import build_report

    facts = gathered.facts
    prepared = find_prepared(store, facts.prepared)
    shown: dict[str, Any] = {}
    if gathered.bundle is not None and prepared is not None:
        shown = looked_into(gathered.bundle, prepared, gathered.folder, facts.scores)
    build_report(
        out,
        spec=facts.spec,
        manifest=gathered.manifest,
        history=facts.history,
        scores=facts.scores,
        samples=facts.samples,
        asked=facts.asked,
        seconds=facts.seconds,
        versions=gathered.versions,
        created=gathered.ended,
        warnings=gathered.warnings,
        inherited=gathered.inherited or None,
        **shown,
    )
