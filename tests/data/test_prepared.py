"""A prepared set and its manifest: whole or not there, every change noticed and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.manifest import FORMAT_VERSION, Manifest
from pipeline.data.prepared import Prepared, Records, find_prepared, open_prepared
from pipeline.errors import PreparedDataError
from pipeline.storage import open_store
from tests.data.prepared_sets import PICTURES, TEXT, memory_store, pictures, tokens, write_prepared

RECORDS = Records.of(["00000000000000aa", "00000000000000bb"], ["train", None])


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return write_prepared(open_store(str(tmp_path)), PICTURES, pictures(40), 8, records=RECORDS)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_set_verifies_and_tells_its_progress(prepared: Prepared) -> None:
    told: list[tuple[Any, ...]] = []
    prepared.verify(lambda *values: told.append(values))
    assert [values[:3] for values in told] == [("verify", done, 5) for done in range(1, 6)]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-00003.parquet", flipped, "was changed, its sha256"),
        ("train-00004.parquet", Path.unlink, "the shard is missing"),
        ("train-00000.parquet", lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, the manifest says"),
        ("records.parquet", flipped, "was changed, its sha256"),
        ("records.parquet", Path.unlink, "is missing"),
    ],
)
def test_verifying_names_the_file_that_changed(
    prepared: Prepared, file: str, change: Callable[[Path], Any], message: str
) -> None:
    change(prepared.store.local_path(file))
    with pytest.raises(PreparedDataError, match=rf"{file}: .*{message}.*prepare"):
        prepared.verify()


def test_verifying_finds_wrong_rows(prepared: Prepared) -> None:
    prepared.manifest.splits["train"]["shards"][2]["rows"] = 7
    with pytest.raises(PreparedDataError, match=r"train-00002\.parquet: 8 rows, the manifest says 7"):
        prepared.verify()


@given(rows=st.lists(st.integers(0, 39), unique=True).map(sorted), group_rows=st.integers(1, 9))
def test_chosen_rows_are_those_of_the_whole_split(rows: list[int], group_rows: int) -> None:
    x = pictures(40)
    found = write_prepared(memory_store(), PICTURES, x, 8, group_rows).load_rows("train", torch.tensor(rows).long())
    assert np.array_equal(found.numpy(), x[rows])


def test_loading_hashes_when_asked(prepared: Prepared) -> None:
    flipped(prepared.store.local_path("train-00001.parquet"))
    with pytest.raises(PreparedDataError, match=r"train-00001\.parquet: the shard was changed, its sha256"):
        prepared.load_split("train")


def test_loading_checks_sizes_without_hashing(prepared: Prepared) -> None:
    path = prepared.store.local_path("train-00001.parquet")
    path.write_bytes(path.read_bytes()[:-5])
    assert prepared.missing_shards() == ["train-00001.parquet"]
    with pytest.raises(PreparedDataError, match=r"train-00001\.parquet: [\d,]+ bytes, the manifest says"):
        prepared.load_split("train", verify=False)


def test_a_split_whose_shards_do_not_add_up_is_refused(prepared: Prepared) -> None:
    prepared.manifest.splits["train"]["rows"] = 41
    with pytest.raises(PreparedDataError, match="the shards of train have 40 rows, the split 41"):
        prepared.load_split("train")


@given(most=st.integers(1, 45))
def test_a_split_that_is_cut_is_the_beginning_of_the_whole(most: int) -> None:
    prepared = write_prepared(memory_store(), TEXT, tokens(40), 8, 3, tail=[1, 2])
    whole, part = prepared.load_split("train"), prepared.load_split("train", max_rows=most)
    count = min(most, 40)
    assert len(part) == len(part.label) == len(part.ids) == count
    np.testing.assert_array_equal(part.x, whole.x[:count])
    # A tail that does not follow on the last window is none.
    assert part.tail.tolist() == ([1, 2] if most >= 40 else [])


def test_a_set_without_its_manifest_is_not_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.make_dir("prepared", "k")
    assert find_prepared(store, "k") is None
    with pytest.raises(PreparedDataError, match="run 'atelier prepare'"):
        open_prepared(store, "k")


@pytest.mark.parametrize("key", ["layout", "splits", "corpus", "report", "key"])
def test_an_edited_manifest_is_noticed(prepared: Prepared, tmp_path: Path, key: str) -> None:
    values = prepared.store.read_json("manifest.json")
    values[key] = "other" if key == "key" else {**values[key], "more": 1}
    prepared.store.write_json(values, "manifest.json")
    with pytest.raises(PreparedDataError, match=r"k/manifest\.json: was edited, .*'atelier prepare'"):
        open_prepared(open_store(str(tmp_path)), "k")


def test_a_manifest_written_in_another_style_is_the_same(prepared: Prepared) -> None:
    values = json.loads(json.dumps(dict(reversed(prepared.manifest.as_dict().items())), indent=7, ensure_ascii=True))
    assert Manifest.from_dict(values) == prepared.manifest


@given(
    st.dictionaries(
        st.text(), st.floats(allow_nan=False) | st.integers() | st.text() | st.lists(st.none() | st.booleans())
    )
)
def test_a_digest_survives_writing_and_reading(report: dict[str, Any]) -> None:
    manifest = Manifest(FORMAT_VERSION, "k", {"ü": (1, 2), "ids": {10: "a", 9: "b"}}, *[{}] * 6, report)
    store = memory_store()
    store.write_json(manifest.as_dict(), "manifest.json")
    assert Manifest.from_dict(store.read_json("manifest.json")).digest() == manifest.digest()


def test_a_manifest_of_another_format_says_so(prepared: Prepared) -> None:
    with pytest.raises(PreparedDataError, match="format 99"):
        Manifest.from_dict(prepared.manifest.as_dict() | {"format_version": 99})


def test_a_manifest_without_its_sum_is_refused(prepared: Prepared) -> None:
    values = prepared.manifest.as_dict()
    del values["sha256"]
    with pytest.raises(PreparedDataError, match="has no sha256"):
        Manifest.from_dict(values)
