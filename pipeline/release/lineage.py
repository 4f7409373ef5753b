"""Lineage: from a registered model back to its data, code and run; and from a record to the models that saw it.

Runs in the driver, without Ray. What a model was made of is in its own bundle and run, so that it is known even where
the prepared set is gone; which records a set holds is read from the set's `records.parquet`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.codec import CODECS
from pipeline.data.corpus import open_corpus
from pipeline.data.manifest import MANIFEST as MANIFEST_FILE
from pipeline.data.manifest import SPLITS
from pipeline.data.prepared import Prepared, Records, find_prepared
from pipeline.data.records import content_id
from pipeline.errors import CorpusError, PreparedDataError, RegistryError, SpecError
from pipeline.generation.sampling import MANIFEST, SPEC, WEIGHTS, read_checked
from pipeline.release.champion import Version, find_champion, find_version, list_versions
from pipeline.release.finding import download, find
from pipeline.release.tracking import RecordedRun, read_artifact, read_run, resolve_uri
from pipeline.spec import RunSpec, make_spec
from pipeline.storage import open_store

MOST_FILES = 100
"""Source files named one by one."""
LONGEST_CHAIN = 100

# --- from a model to its data -----------------------------------------------------------------------------------


def model_lineage(model_uri: str, storage: str | None = None) -> dict[str, Any]:
    """What a registered model was made of, of JSON types.

    `model`: version, weights; `run`: when, commit, packages; `began_with`: the models whose weights it began with,
    nearest first; `data`: prepared set, its shards with checksums, and whether they are in the storage as the manifest
    says; `source`: the corpus, its fingerprint then and, where it can be read, now, with its files.
    Raises: RegistryError, TrackingError.
    """
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    found = find(model_uri, tracking_uri)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = download(found, tracking_uri, Path(temporary))
        files, checksums = read_checked(bundle)
    spec = make_spec(json.loads(files[SPEC]), where=f"{model_uri}, {SPEC}")
    manifest = json.loads(files[MANIFEST])
    version = find_version(tracking_uri, found.name, found.version) if found.name and found.version else None
    run = read_run(tracking_uri, found.run_id) if found.run_id else None
    return {
        "model": {
            "uri": found.model_uri,
            "weights_sha256": checksums[WEIGHTS],
            "decision": version.tags.get("atelier.decision") if version else None,
            "reason": version.tags.get("atelier.decision.reason") if version else None,
        },
        "run": _run(tracking_uri, found.run_id, run) if found.run_id and run else None,
        "began_with": [_uri(each) for each in _ancestors(tracking_uri, run.tags if run else {})],
        "data": _data(manifest, storage or (run.storage if run else "") or spec.storage),
        "source": _source(spec, manifest),
    }


def _run(tracking_uri: str, run_id: str, run: RecordedRun) -> dict[str, Any]:
    versions = json.loads(read_artifact(tracking_uri, run_id, "versions.json") or b"{}")
    return {
        "run_id": run_id,
        "started_at": run.started.isoformat(timespec="seconds"),
        "status": run.status,
        "commit": run.tags.get("mlflow.source.git.commit") or versions.get("git_commit"),
        "uncommitted_changes": versions.get("git_dirty"),
        "versions": versions,
    }


def _data(manifest: Mapping[str, Any], storage: str) -> dict[str, Any]:
    return {
        "prepared": manifest["key"],
        "manifest_sha256": manifest["sha256"],
        "in_storage": _state_of_set(manifest, storage),
        "records": manifest["corpus"].get("records"),
        "splits": {
            name: {"rows": entry["rows"], "records": entry.get("records"), "shards": entry.get("shards", [])}
            for name, entry in manifest["splits"].items()
        },
    }


def _state_of_set(manifest: Mapping[str, Any], storage: str) -> str:
    """Whether the prepared set is there, by its manifest and its files' sizes; `atelier train` compares checksums."""
    try:
        prepared = find_prepared(open_store(storage), manifest["key"])
    except PreparedDataError as error:
        return f"changed: {error}"
    if prepared is None:
        return f"not in {storage}"
    if prepared.manifest.digest() != manifest["sha256"]:
        return f"{prepared.store.path(MANIFEST_FILE)} is another manifest than the model's"
    missing = prepared.missing_shards()
    return f"{prepared.store.uri} lacks {', '.join(missing)}" if missing else prepared.store.uri


def _source(spec: RunSpec, manifest: Mapping[str, Any]) -> dict[str, Any]:
    corpus = manifest["corpus"]
    about = {"licence": corpus.get("licence"), "fingerprint": corpus["fingerprint"], **corpus.get("source", {})}
    try:
        now = open_corpus(spec.data.source, CODECS[spec.data.codec.kind](spec.data.codec).modality)
        same = now.fingerprint() == corpus["fingerprint"]
        files = [{"name": file.name, "bytes": file.size, "digest": file.digest} for file in now.files()]
    except CorpusError as error:
        return {**about, "now": f"cannot be read: {error}"}
    if not same:
        return {**about, "now": "changed since"}
    return {**about, "now": "unchanged", "num_files": len(files), "files": files[:MOST_FILES]}


def _uri(version: Version) -> str:
    return f"models:/{version.name}/{version.version}"


def _ancestors(tracking_uri: str, tags: Mapping[str, str]) -> Iterator[Version]:
    """The registered models whose weights a run began with, nearest first, as long as they are in the registry."""
    for _ in range(LONGEST_CHAIN):
        match = re.fullmatch(r"models:/([^/@]+)/(\d+)", tags.get("atelier.init_from", ""))
        if not match:
            return
        try:
            version = find_version(tracking_uri, match[1], match[2])
        except RegistryError:  # deleted since
            return
        yield version
        if version.run_id is None:
            return
        tags = read_run(tracking_uri, version.run_id).tags


# --- from a record to the models ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Where a version's prepared set has a record. `splits`: among `SPLITS`, or `left out` where it was read and
    dropped or quarantined; empty: not in it. None: unknown, and `why`."""

    splits: tuple[str, ...] | None
    why: str = ""


def record_lineage(record: str, storage: str | None = None) -> dict[str, Any]:
    """Which registered models saw a record: `record` is its id (16 hexadecimal digits), its sha256, or a file.

    Of each version its `splits` (`train`: it was trained on it), and `by_way_of`: models whose weights it began with
    that were. Records are known by the content of the file, the text or the array that was read, before cleaning; a
    copy that differs in a byte is another record. Raises: SpecError when `record` is none of the three, TrackingError.
    """
    ids = record_ids(record)
    tracking_uri = resolve_uri(open_store(storage or "storage"))
    champion_of = cache(lambda name: find_champion(tracking_uri, name))
    wanted = np.array([int(each, 16) for each in ids], np.uint64)

    @cache
    def run_of(run_id: str) -> RecordedRun:
        return read_run(tracking_uri, run_id)

    @cache
    def records_of(folder: str, key: str) -> Seen:
        return _seen(wanted, folder, key)

    def seen_by(version: Version) -> Seen:
        run = run_of(version.run_id) if version.run_id else None
        if version.prepared is None:
            return Seen(None, "the version does not say which prepared set it is of")
        return records_of(storage or (run.storage if run else "") or "storage", version.prepared)

    models = []
    for version in list_versions(tracking_uri):
        if "atelier.weights_sha256" not in version.tags:
            continue
        found = seen_by(version)
        champion = champion_of(version.name)
        models.append(
            {
                "model": _uri(version),
                "champion": champion is not None and champion.version == version.version,
                "splits": None if found.splits is None else list(found.splits),
                "why": found.why,
                "by_way_of": [
                    _uri(each)
                    for each in _ancestors(tracking_uri, run_of(version.run_id).tags if version.run_id else {})
                    if "train" in (seen_by(each).splits or ())
                ],
            }
        )
    return {"record": record, "ids": ids, "models": models}


def record_ids(record: str) -> list[str]:
    """The ids that a record may have: of its bytes and, where they are UTF-8, of its text with and without an end of
    line. Raises: SpecError."""
    path = Path(record).expanduser()
    if path.is_file():
        data = path.read_bytes()
        ids = [content_id(data)]
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            return ids
        return list(dict.fromkeys([*ids, content_id(text), content_id(text.rstrip("\n"))]))
    if re.fullmatch(r"[0-9a-fA-F]{16}([0-9a-fA-F]{48})?", record):
        return [record[:16].lower()]
    raise SpecError(f"--record {record!r}: neither a file, nor an id of 16 or a sha256 of 64 hexadecimal digits")


def _seen(wanted: np.ndarray, storage: str, key: str) -> Seen:
    prepared: Prepared | None = find_prepared(open_store(storage), key)
    records = prepared.load_records() if prepared is not None else None
    if records is None:
        why = f"its prepared set {key} is not in {storage}" if prepared is None else "its set keeps no record ids"
        return Seen(None, why)
    sides = np.unique(records.side[np.isin(records.record, wanted)])
    return Seen(tuple("left out" if side == Records.NO_SIDE else SPLITS[side] for side in sides))


# --- telling --------------------------------------------------------------------------------------------------


def describe_lineage(found: Mapping[str, Any]) -> str:
    """Either lineage as lines for a terminal."""
    return "\n".join(_record_lines(found) if "models" in found else _model_lines(found))


def _record_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"record {' or '.join(found['ids'])}"
    for entry in found["models"]:
        splits = entry["splits"]
        said = f"unknown: {entry['why']}" if splits is None else ", ".join(splits) or "not seen"
        way = (
            f"; trained on by {', '.join(entry['by_way_of'])}, whose weights it began with"
            if entry["by_way_of"]
            else ""
        )
        yield f"  {entry['model']}{' (champion)' if entry['champion'] else ''}  {said}{way}"


def _model_lines(found: Mapping[str, Any]) -> Iterator[str]:
    model, run, data, source = (found[name] for name in ("model", "run", "data", "source"))
    yield f"{model['uri']}  {model['decision'] or 'not decided on'}"
    yield f"  weights   sha256 {model['weights_sha256']}"
    if run:
        yield f"  run       {run['run_id']}, {run['started_at']}, {run['status']}"
        changes = " with uncommitted changes" if run["uncommitted_changes"] == "true" else ""
        yield f"  commit    {run['commit'] or 'unknown'}{changes}"
    for uri in found["began_with"]:
        yield f"  began with the weights of {uri}"
    yield f"  data      prepared set {data['prepared']}, manifest sha256 {data['manifest_sha256']}"
    yield f"            {data['in_storage']}"
    for name, split in data["splits"].items():
        for shard in split["shards"]:
            yield f"            {shard['file']}  {shard['rows']:,} rows  sha256 {shard['sha256']}"
        yield f"            {name}: {split['rows']:,} examples"
    yield f"  source    {source.get('kind', '')} {source.get('path') or source.get('name') or ''}, {source['licence']}"
    yield f"            fingerprint {source['fingerprint']}, {source['now']}"
