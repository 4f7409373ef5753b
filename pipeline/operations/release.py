"""`atelier release`: the gate between a version and the champion now, what was released, and taking it back.

Runs in the driver, with a local Ray or a cluster for the scores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PreparedDataError, RegistryError, SpecError
from pipeline.evaluation.metric import Score
from pipeline.outcome import Stopwatch
from pipeline.progress import Progress, silent
from pipeline.reading import apply_overrides
from pipeline.release.champion import CHALLENGER, Champion, Version, find_champion, find_version, list_versions
from pipeline.release.conclusion import conclude
from pipeline.release.gate import Evidence, decide
from pipeline.release.policy import policy_of
from pipeline.release.releases import Release, history, rollback, settle
from pipeline.release.tracking import read_artifact, resolve_uri
from pipeline.spec import RunSpec, make_spec
from pipeline.spec.release import bare
from pipeline.storage import open_store

if TYPE_CHECKING:
    from pipeline.data.prepared import Prepared
    from pipeline.evaluation.compare import Measured


@dataclass
class ReleaseOutcome:
    """What `atelier release decide` tells in its last line. `decision`: `first`, `promoted`, `held` or `rejected`;
    `release`: the number of the move, None when nothing was moved."""

    name: str
    version: str
    champion: str | None
    decision: str
    reason: str
    release: int | None
    gate: dict[str, Any]
    table: str
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)


def decide_job(
    name: str,
    version: str | None,
    overrides: Iterable[str],
    storage: str | None,
    progress: Progress = silent,
    address: str | None = None,
) -> ReleaseOutcome:
    """Gate a version (by default the alias `challenger`) against the champion, on the version's own held-out data.

    The policy is that of the version's spec, with `overrides` of `release.…` and `evaluation.…`. Limits and findings
    go by what was scored when the version was trained. Raises: SpecError, RegistryError, PreparedDataError,
    ComparisonError, TrackingError.
    """
    watch = Stopwatch()
    overrides = list(overrides)
    wrong = [override for override in overrides if not override.startswith(("evaluation.", "release."))]
    if wrong:
        raise SpecError(f"--set {wrong[0]!r}: the gate takes release.… and evaluation.… only; the model is what it is")
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    settle(tracking_uri, name)
    champion = find_champion(tracking_uri, name)
    challenger = _challenger(tracking_uri, name, version, champion)
    with tempfile.TemporaryDirectory() as temporary:
        spec, prepared, bundle = _of_version(
            tracking_uri, challenger, overrides, storage, Path(temporary, "challenger")
        )
        policy = policy_of(spec)
        evidence = Evidence(_scores(tracking_uri, challenger), {}, challenger.findings)
        against, note = None, ""
        if champion is not None:
            keys = [bare(key) for key in (*policy.improve, *policy.keep)]
            bundles = {"champion": _fetch(tracking_uri, champion.model_uri, Path(temporary, "champion"))}
            bundles["challenger"] = bundle
            with watch.stage("compare"):
                measured = _measured(spec, prepared, bundles, keys, progress, address)
            against = Evidence(measured=measured["champion"])
            evidence = Evidence(evidence.scores, measured["challenger"], evidence.findings)
            note = _seen_before(prepared, champion)
        decision = decide(policy, evidence, against, spec.seed)
    concluded = conclude(tracking_uri, name, challenger.version, champion.version if champion else None, decision, note)
    return ReleaseOutcome(
        name,
        challenger.version,
        champion.version if champion else None,
        concluded.decision,
        concluded.reason,
        concluded.release,
        decision.as_dict(),
        decision.table(),
        watch.with_total(),
    )


def show(name: str, storage: str | None) -> dict[str, Any]:
    """What was released under a name, and what was decided on each of its versions; writes nothing.

    Raises: RegistryError when there is no such model, TrackingError.
    """
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    versions = list_versions(tracking_uri, name)
    if not versions:
        raise RegistryError(f"{name}: no version of such a model is in {tracking_uri}")
    finished, begun = history(tracking_uri, name)
    champion = find_champion(tracking_uri, name)
    return {
        "name": name,
        "champion": champion.version if champion else None,
        "releases": [_without_token(release) for release in finished],
        "unfinished": _without_token(begun) if begun else None,
        "versions": [
            {
                "version": each.version,
                "decision": each.tags.get("atelier.decision"),
                "reason": each.tags.get("atelier.decision.reason"),
                "compared_with": each.tags.get("atelier.gate.compared_with"),
            }
            for each in versions
        ],
    }


def rollback_job(name: str, reason: str, storage: str | None) -> dict[str, Any]:
    """Take the last promotion of a name back. Raises: RegistryError when there is none, TrackingError."""
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    return _without_token(rollback(tracking_uri, name, reason))


def _without_token(release: Release) -> dict[str, Any]:
    return {key: value for key, value in release.as_dict().items() if key != "token"}


# --- what is gated --------------------------------------------------------------------------------------------


def _challenger(tracking_uri: str, name: str, version: str | None, champion: Champion | None) -> Version:
    if version is None:
        found = find_champion(tracking_uri, name, CHALLENGER)
        if found is None:
            raise RegistryError(
                f"{name}: there is no model of that name with a challenger; train one, or say --version"
            )
        version = found.version
    if champion is not None and champion.version == version:
        raise RegistryError(f"{name}: version {version} is the champion; say --version with another one")
    return find_version(tracking_uri, name, version)


def _of_version(
    tracking_uri: str, version: Version, overrides: list[str], storage: str | None, folder: Path
) -> tuple[RunSpec, Prepared, Path]:
    """The spec, the prepared set and the bundle of a version."""
    from pipeline.data.prepared import find_prepared
    from pipeline.generation.sampling import load_bundle

    uri = f"models:/{version.name}/{version.version}"
    bundle = _fetch(tracking_uri, uri, folder)
    loaded = load_bundle(bundle)
    spec = make_spec(apply_overrides(loaded.spec.as_dict(), overrides), where=uri)
    store = open_store(storage or spec.storage)
    prepared = find_prepared(store, loaded.manifest["key"])
    if prepared is None:
        raise PreparedDataError(
            f"{store.path('prepared', loaded.manifest['key'])}: the data of {uri} is not here, and both models are "
            "scored on it; give its storage with --storage, or run 'atelier prepare' with the model's spec"
        )
    return spec, prepared, bundle


def _fetch(tracking_uri: str, model_uri: str, folder: Path) -> Path:
    from pipeline.release.finding import fetch

    return fetch(model_uri, tracking_uri, folder)


def _scores(tracking_uri: str, version: Version) -> Mapping[str, Score]:
    """What was scored when the version was trained; nothing for one that was registered by other means."""
    data = read_artifact(tracking_uri, version.run_id, "scores.json") if version.run_id else None
    return {key: Score.from_dict(values) for key, values in json.loads(data or b"{}").items()}


def _measured(
    spec: RunSpec,
    prepared: Prepared,
    bundles: Mapping[str, Path],
    keys: list[str],
    progress: Progress,
    address: str | None,
) -> dict[str, dict[str, Measured]]:
    from pipeline.evaluation.evaluate import measure
    from pipeline.ray_session import ray_session

    progress("start", 0, None, "starting Ray")
    with ray_session(address):
        return {who: measure(spec, prepared, bundle, keys, progress) for who, bundle in bundles.items()}


def _seen_before(prepared: Prepared, champion: Champion) -> str:
    """A note when the champion was trained on what both are scored on."""
    from pipeline.data.prepared import find_prepared
    from pipeline.operations.decisions import held_out

    folder, _, _ = prepared.store.uri.rpartition("/prepared/")
    then = find_prepared(open_store(folder), champion.prepared) if champion.prepared else None
    checked = asdict(held_out(prepared, then))
    if not checked["trained_on"]:
        return ""
    return f"the champion was trained on {checked['trained_on']} of {checked['records']} test records"
