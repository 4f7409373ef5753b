"""From a model to its data, code and run; and from a record to the models that saw it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import tiny_manifest, tiny_spec

from pipeline.data.codec import make_codec
from pipeline.data.corpus import open_corpus
from pipeline.data.manifest import FOLDER, Manifest
from pipeline.data.prepared import Records
from pipeline.data.records import content_id
from pipeline.errors import SpecError
from pipeline.generation.sampling import save_bundle
from pipeline.models import build_model
from pipeline.release.lineage import describe_lineage, model_lineage, record_ids, record_lineage
from pipeline.release.recorder import RunRecorder
from pipeline.release.registry import register
from pipeline.release.tracking import Tracking, start_or_continue_run
from pipeline.storage import open_store

SIDES: dict[str, dict[str, str | None]] = {
    "aaaaaaaaaaaaaaaa": {"one": "train", "two": "test", "three": "validation", "four": None},
    "bbbbbbbbbbbbbbbb": {"two": "train", "five": "train"},
}
"""Two prepared sets, which side each record (a line) is on."""


@pytest.fixture(scope="module")
def storage(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with two prepared sets and three models: of the first, of the second, and of a set that is gone.

    The second began with the weights of the first.
    """
    storage = Path(tracking.uri.removeprefix("sqlite:///")).parent
    corpus = tmp_path_factory.mktemp("corpus")
    (corpus / "lines.txt").write_text("".join(f"{line}\n" for line in SIDES["aaaaaaaaaaaaaaaa"]))
    source = {"kind": "lines", "path": str(corpus), "licence": "CC0-1.0"}
    spec = tiny_spec("text", name="lineage")
    spec = spec.model_validate({**spec.as_dict(), "data": {**spec.as_dict()["data"], "source": source}})
    fingerprint = open_corpus(spec.data.source, "text").fingerprint()
    for number, key in enumerate((*SIDES, "cccccccccccccccc"), start=1):
        manifest = Manifest.from_dict(tiny_manifest(spec))
        about: dict[str, Any] = {**manifest.corpus, "fingerprint": fingerprint}
        if key in SIDES:
            records = Records.of([content_id(line) for line in SIDES[key]], list(SIDES[key].values()))
            about["records"] = records.save(open_store(str(storage)).child(FOLDER, key))
        shards = {
            "rows": 90,
            "records": 3,
            "shards": [{"file": "train-00000.parquet", "rows": 90, "bytes": 5, "sha256": "d" * 64}],
        }
        splits = {name: {"shards": [], **entry} for name, entry in manifest.splits.items()}
        manifest = replace(manifest, key=key, corpus=about, splits={**splits, "train": shards})
        if key in SIDES:
            open_store(str(storage)).child(FOLDER, key).write_json(manifest.as_dict(), "manifest.json")
        codec = make_codec(spec.data.codec)
        codec.restore(manifest.codec)
        weights = build_model(spec, codec.layout()).state_dict()
        bundle = save_bundle(tmp_path_factory.mktemp("bundle"), spec, manifest.as_dict(), weights)
        tags = {"atelier.init_from": "models:/lineage/1"} if number == 2 else {}
        run_id = start_or_continue_run(tracking, "lineage", "lineage", f"lineage-{number}", tags)
        RunRecorder(tracking.uri, run_id).log_json({"git_commit": "c0ffee", "git_dirty": "true"}, "versions.json")
        register(tracking, run_id, bundle, "lineage", {})
    return storage


def seen(record: str, storage: Path) -> dict[str, Any]:
    found = record_lineage(record, str(storage))
    json.dumps(found)
    return {each["model"]: each["splits"] for each in found["models"] if each["model"].startswith("models:/lineage/")}


@pytest.mark.parametrize(
    ("line", "first", "second"),
    [
        ("one", ["train"], []),
        ("two", ["test"], ["train"]),
        ("three", ["validation"], []),
        ("four", ["left out"], []),
        ("five", [], ["train"]),
        ("six", [], []),
    ],
)
def test_a_record_is_found_in_every_model_that_saw_it(storage: Path, line: str, first: Any, second: Any) -> None:
    models = seen(content_id(line), storage)
    assert models == {"models:/lineage/1": first, "models:/lineage/2": second, "models:/lineage/3": None}


def test_a_file_is_found_by_its_content(storage: Path, tmp_path: Path) -> None:
    for content in ("one", "one\n", "one\r\n", "﻿one"):
        (tmp_path / "record.txt").write_bytes(content.encode())
        assert seen(str(tmp_path / "record.txt"), storage)["models:/lineage/1"] == ["train"]
    (tmp_path / "record.bin").write_bytes(b"\xff\xfe")
    assert record_ids(str(tmp_path / "record.bin")) == [content_id(b"\xff\xfe")]


def test_a_model_that_began_with_the_weights_of_another_is_told_with_it(storage: Path) -> None:
    models = record_lineage(content_id("one"), str(storage))["models"]
    by_way_of = {each["model"]: each["by_way_of"] for each in models}
    assert by_way_of["models:/lineage/2"] == ["models:/lineage/1"]
    assert by_way_of["models:/lineage/1"] == []
    text = describe_lineage(record_lineage(content_id("one"), str(storage)))
    assert "models:/lineage/2  not seen; trained on by models:/lineage/1, whose weights it began with" in text
    assert "models:/lineage/1 (champion)  train" in text
    assert "models:/lineage/3  unknown: its prepared set cccccccccccccccc is not in" in text


def test_what_is_no_record_is_refused() -> None:
    for wrong in ("abc", "z" * 16, "0" * 17):
        with pytest.raises(SpecError, match="neither a file, nor an id"):
            record_ids(wrong)
    assert record_ids("A" * 64) == ["a" * 16]


def test_a_model_leads_to_its_shards_its_sources_and_its_commit(storage: Path) -> None:
    found = model_lineage("models:/lineage@champion", str(storage))
    json.dumps(found)
    assert found["model"]["uri"] == "models:/lineage/1" and len(found["model"]["weights_sha256"]) == 64
    assert found["run"]["versions"]["git_commit"] == "c0ffee" and found["run"]["uncommitted_changes"] == "true"
    assert found["data"]["prepared"] == "aaaaaaaaaaaaaaaa"
    assert found["data"]["splits"]["train"]["shards"][0]["sha256"] == "d" * 64
    assert found["data"]["in_storage"].endswith("lacks train-00000.parquet")
    assert found["source"]["now"] == "unchanged" and found["source"]["licence"] == "CC0-1.0"
    assert found["source"]["files"][0]["name"] == "lines.txt" and len(found["source"]["files"][0]["digest"]) == 64
    text = describe_lineage(found)
    for words in ("commit", "train-00000.parquet  90 rows  sha256 dddd", "with uncommitted changes", "unchanged"):
        assert words in text
    assert model_lineage("models:/lineage/2", str(storage))["began_with"] == ["models:/lineage/1"]


def test_a_corpus_that_changed_or_is_gone_is_told(storage: Path) -> None:
    source = model_lineage("models:/lineage/1", str(storage))["source"]
    lines = Path(source["path"], "lines.txt")
    kept = lines.read_bytes()
    try:
        lines.write_bytes(kept + b"more\n")
        assert model_lineage("models:/lineage/1", str(storage))["source"]["now"] == "changed since"
        lines.unlink()
        assert "cannot be read" in model_lineage("models:/lineage/1", str(storage))["source"]["now"]
    finally:
        lines.write_bytes(kept)
