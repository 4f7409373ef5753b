"""Shards, windows and the manifest without Ray: exact rows, exact reading back, damage noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.codec import make_codec
from pipeline.data.collect import WindowPacker
from pipeline.data.layout import Layout
from pipeline.data.manifest import FORMAT_VERSION, Manifest
from pipeline.data.prepared import Prepared, find_prepared, open_prepared
from pipeline.data.shards import ShardWriter
from pipeline.errors import PreparedDataError, StorageError
from pipeline.spec import ImageCodecSpec
from pipeline.storage import Store, open_store

CODEC = make_codec(ImageCodecSpec(kind="image", size=(3, 2)))


def write_set(root: Store, key: str, x: np.ndarray, blocks: list[int], layout: Layout, rows: int = 4) -> Prepared:
    store = root.child("prepared", key)
    writer = ShardWriter(store, "train", layout, rows)
    for start, stop in zip([0, *np.cumsum(blocks)[:-1]], np.cumsum(blocks), strict=True):
        names = [f"{i:016x}" for i in range(start, stop)]
        labels = pa.array([None if i % 3 == 2 else "ab"[i % 3] for i in range(start, stop)], pa.string())
        writer.write(x[start:stop], pa.array(names), pa.array(names), labels)
    entry = {"shards": writer.close(), "rows": writer.rows, "tail_tokens": []}
    manifest = Manifest(FORMAT_VERSION, key, {}, {}, CODEC.state(), layout.as_dict(), {"train": entry}, {})
    store.write_json(manifest.as_dict(), "manifest.json")
    return open_prepared(root, key)


@given(blocks=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum), rows=st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_shards_are_exact_and_come_back_in_order(
    blocks: list[int], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = sum(blocks)
    x = np.random.default_rng(0).integers(0, 256, (count, 1, 3, 2), dtype=np.uint8)
    root = open_store(str(tmp_path_factory.mktemp("store")))
    prepared = write_set(root, "k", x, blocks, CODEC.layout(("a", "b")), rows)
    sizes = [shard["rows"] for shard in prepared.manifest.splits["train"]["shards"]]
    assert sizes == [rows] * (count // rows) + [count % rows] * (count % rows > 0)
    arrays = prepared.load_split("train")
    assert len(arrays) == count
    np.testing.assert_array_equal(arrays.x.numpy(), x)
    assert arrays.label.tolist() == [[0, 1, -1][i % 3] for i in range(count)]
    assert [str(name) for name in arrays.ids] == [f"{i:016x}" for i in range(count)]


def test_a_label_that_training_never_saw_is_unknown(tmp_path: Path) -> None:
    x = np.zeros((3, 1, 3, 2), np.uint8)
    prepared = write_set(open_store(str(tmp_path)), "k", x, [3], CODEC.layout(("b",)))
    assert prepared.load_split("train").label.tolist() == [-1, 0, -1]


def test_two_byte_tokens_become_int32(tmp_path: Path) -> None:
    layout = Layout("text", "tokens", (5,), "uint16", "categorical", vocabulary=60_000)
    x = np.full((2, 5), 59_999, np.uint16)
    loaded = write_set(open_store(str(tmp_path)), "k", x, [2], layout).load_split("train").x
    assert loaded.dtype == torch.int32 and loaded.max() == 59_999


def test_the_column_is_a_standard_tensor_for_any_reader(tmp_path: Path) -> None:
    x = np.zeros((3, 1, 3, 2), np.uint8)
    prepared = write_set(open_store(str(tmp_path)), "k", x, [3], CODEC.layout())
    table = pq.read_table(prepared.store.local_path("train-00000.parquet"))
    assert table.schema.field("x").type == pa.fixed_shape_tensor(pa.uint8(), (1, 3, 2))


def damaged(tmp_path: Path) -> tuple[Prepared, Path]:
    x = np.arange(36, dtype=np.uint8).reshape(6, 1, 3, 2)
    prepared = write_set(open_store(str(tmp_path)), "k", x, [6], CODEC.layout())
    return prepared, prepared.store.local_path("train-00001.parquet")


def test_a_changed_shard_is_noticed_and_named(tmp_path: Path) -> None:
    prepared, path = damaged(tmp_path)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(PreparedDataError, match=r"train-00001\.parquet: the shard was changed.*'atelier prepare'"):
        prepared.load_split("train")
    assert prepared.missing_shards() == []


def test_a_shard_with_other_rows_is_noticed_without_verifying(tmp_path: Path) -> None:
    prepared, path = damaged(tmp_path)
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(PreparedDataError, match=r"1 rows, the manifest says 2"):
        prepared.load_split("train", verify=False)


@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_that_is_cut_or_missing_is_noticed(cut: bool, tmp_path: Path) -> None:
    prepared, path = damaged(tmp_path)
    path.write_bytes(path.read_bytes()[:50]) if cut else path.unlink()
    assert prepared.missing_shards() == ["train-00001.parquet"]
    with pytest.raises(PreparedDataError, match=r"train-00001\.parquet: the shard (cannot be read|is missing)"):
        prepared.load_split("train", verify=False)


def test_a_set_without_its_manifest_is_not_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.make_dir("prepared", "k")
    assert find_prepared(store, "k") is None
    with pytest.raises(PreparedDataError, match="run 'atelier prepare'"):
        open_prepared(store, "k")


def test_a_manifest_of_another_format_says_so(tmp_path: Path) -> None:
    prepared, _ = damaged(tmp_path)
    values: dict[str, Any] = prepared.manifest.as_dict() | {"format_version": 99}
    with pytest.raises(PreparedDataError, match="format 99"):
        Manifest.from_dict(values)


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write_set(open_store(str(tmp_path)), "k", np.zeros((3, 1, 3, 2), np.uint8), [3], CODEC.layout())
    assert list((tmp_path / "prepared" / "k").iterdir()) == []


@given(documents=st.lists(st.integers(0, 12), max_size=20), length=st.integers(2, 7), cuts=st.integers(1, 4))
def test_windows_and_tail_are_the_stream_whatever_the_blocks(documents: list[int], length: int, cuts: int) -> None:
    stream = np.arange(sum(documents), dtype=np.uint16)
    pieces = np.split(stream, np.cumsum(documents)[:-1]) if documents else []
    packer = WindowPacker("train", length, "uint16")
    windows: list[np.ndarray] = []
    origins: list[str] = []
    for start in range(0, len(pieces), cuts):
        part = [piece.tobytes() for piece in pieces[start : start + cuts]]
        names = pa.array([str(i) for i in range(start, start + len(part))])
        x, identifiers, origin = packer.add(part, names)
        assert len(x) == len(identifiers) == len(origin)
        windows.extend(x)
        origins.extend(origin.to_pylist())
    assert len(packer.tail) < length
    np.testing.assert_array_equal(np.concatenate([*windows, packer.tail]), stream)
    owner = np.repeat(np.arange(len(documents)), documents)
    assert origins == [str(owner[i * length]) for i in range(len(windows))]
