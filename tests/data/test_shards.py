"""Shards and windows without Ray: exact rows, exact reading back, the same bytes again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shards import GROUP_BYTES
from pipeline.errors import StorageError
from pipeline.storage import open_store
from tests.data.prepared_sets import PICTURES, TEXT, memory_store, pictures, write_prepared


@given(
    blocks=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum),
    rows=st.integers(1, 7),
    group=st.integers(1, 9),
)
def test_shards_are_exact_and_come_back_in_order(blocks: list[int], rows: int, group: int) -> None:
    count = sum(blocks)
    x = pictures(count)
    prepared = write_prepared(memory_store(), PICTURES, x, rows, group, blocks=blocks)
    sizes = [shard["rows"] for shard in prepared.manifest.splits["train"]["shards"]]
    assert sizes == [rows] * (count // rows) + [count % rows] * (count % rows > 0)
    arrays = prepared.load_split("train")
    assert len(arrays) == count
    np.testing.assert_array_equal(arrays.x.numpy(), x)
    assert arrays.label.tolist() == [[0, 1, -1][i % 3] for i in range(count)]
    assert [str(name) for name in arrays.ids] == [f"{i:016x}" for i in range(count)]


def test_a_label_that_training_never_saw_is_unknown() -> None:
    prepared = write_prepared(memory_store(), replace(PICTURES, labels=("b",)), pictures(3))
    assert prepared.load_split("train").label.tolist() == [-1, 0, -1]


def test_two_byte_tokens_become_int32() -> None:
    x = np.full((2, 4), 59_999, np.uint16)
    loaded = write_prepared(memory_store(), TEXT, x).load_split("train").x
    assert loaded.dtype == torch.int32 and loaded.max() == 59_999


@pytest.mark.parametrize(("highest", "codec"), [(256, "UNCOMPRESSED"), (16, "ZSTD")])
def test_what_does_not_become_smaller_is_stored_as_it_is(highest: int, codec: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, highest, (500, 1, 3, 2), dtype=np.uint8)
    prepared = write_prepared(open_store(str(tmp_path)), PICTURES, x, 500)
    group = pq.ParquetFile(prepared.store.local_path("train-00000.parquet")).metadata.row_group(0)
    compressions = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert compressions == {"id": "ZSTD", "origin": "ZSTD", "label": "ZSTD", "x": codec}
    np.testing.assert_array_equal(prepared.load_split("train").x.numpy(), x)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_any_parquet_reader_has_the_examples_with_their_type_and_shape(dtype: str, tmp_path: Path) -> None:
    layout = replace(PICTURES, stored_dtype=dtype)
    x = np.arange(42).reshape(7, 1, 3, 2).astype(dtype)
    prepared = write_prepared(open_store(str(tmp_path)), layout, x, 7)
    table = pq.read_table(prepared.store.local_path("train-00000.parquet"))
    about = table.schema.field("x").metadata
    seen = np.stack([np.frombuffer(value, about[b"dtype"].decode()) for value in table["x"].to_pylist()])
    np.testing.assert_array_equal(seen.reshape(-1, *json.loads(about[b"shape"])), x)
    np.testing.assert_array_equal(prepared.load_split("train").x.numpy(), x)


def test_row_groups_are_a_mebibyte_of_examples() -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(300_000), 400_000)
    (shard,) = prepared.shards("train")
    assert (shard.group_rows, shard.num_groups) == (GROUP_BYTES // 6, 2)
    assert [len(shard.group(number)) for number in range(2)] == [GROUP_BYTES // 6, 300_000 - GROUP_BYTES // 6]


def test_equal_examples_are_equal_bytes() -> None:
    one, two = (write_prepared(memory_store(), PICTURES, pictures(9)) for _ in range(2))
    assert one.manifest.splits == two.manifest.splits


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write_prepared(open_store(str(tmp_path)), PICTURES, pictures(3))
    assert list((tmp_path / "prepared" / "k").iterdir()) == []
