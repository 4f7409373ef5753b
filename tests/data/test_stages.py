"""The parallel steps without Ray: parts that carry their failures, encoding beside them, and shards cut from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.data.catalogue import Catalogue
from pipeline.data.cleaning import Lists, OptOut
from pipeline.data.codec import make_codec
from pipeline.data.corpus import open_corpus
from pipeline.data.cuts import plan_shards
from pipeline.data.layout import Layout
from pipeline.data.manifest import SPLITS
from pipeline.data.parts import PART_SCHEMA, Part, find_parts, part_of, write_part
from pipeline.data.records import Corpus, Record, content_id, make_record
from pipeline.data.selection import Selection, load_rows, select
from pipeline.data.stages import CountStage, CutStage, EncodeStage, ReadStage
from pipeline.errors import PreparedDataError
from pipeline.spec import DataSpec
from pipeline.storage import Store, open_store
from tests.data.prepared_sets import memory_store


class FewRecords(Corpus):
    """A corpus of given records in one file."""

    def __init__(self, *records: Record) -> None:
        self.records = [{**record, "name": "all", "index": index} for index, record in enumerate(records)]

    def _scan(self) -> Any:
        return []

    def _units(self, known: Any) -> Any:
        return []

    def _items(self, unit: Any) -> Any:
        return iter(self.records)

    def _record(self, item: Any) -> Any:
        return item


def data_spec(codec: dict[str, Any], **data: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"kind": "builtin", "name": "digits"}, "codec": codec, **data})


def read(corpus: Corpus, data: DataSpec, store: Store, lists: Lists = Lists(), number: int = 0) -> Part:  # noqa: B008
    stage = ReadStage(corpus, make_codec(data.codec).state(), data, lists, store)
    unit = {"kind": "test", "files": [["all", "d"]], "bytes": 1, "number": number}
    assert stage({"unit": json.dumps(unit), "bytes": 1})["bytes"] == 1
    ((name, entry),) = find_parts(store).items()
    return part_of(store, name, entry)


def test_a_catalogue_that_is_told_of_a_part_knows_what_it_would_read(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name, text in (("a.txt", "one"), ("b.txt", "two")):
        (tmp_path / "corpus" / name).write_text(text)
    data = data_spec({"kind": "bytes"}, source={"kind": "files", "path": str(tmp_path / "corpus")})
    corpus = open_corpus(data.source, "text")
    catalogue = Catalogue(open_store(str(tmp_path / "parts")), corpus, None)
    (unit,) = catalogue.missing()
    stage = ReadStage(corpus, make_codec(data.codec).state(), data, Lists(), catalogue.store)
    answer = stage({"unit": json.dumps(unit), "bytes": unit["bytes"]})
    catalogue.add(answer["part"], answer["rows"])
    assert catalogue.entries == find_parts(catalogue.store)
    assert catalogue.parts() == Catalogue(catalogue.store, corpus, None).parts() != []
    assert catalogue.missing() == []


def table_of(part: Part) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = part.column_table(PART_SCHEMA.names).to_pylist()
    return rows


def test_failures_stay_rows_with_their_reason() -> None:
    corpus = FewRecords(
        make_record("good", np.ones(10, np.float32), label="a", rate=8000, group="anna", split="test"),
        make_record("empty", np.zeros(0, np.float32), rate=8000),
        make_record("noise", b"not a sound"),
        make_record("gone", b"", error="cannot be read"),
    )
    part = read(corpus, data_spec({"kind": "waveform", "num_samples": 64}), memory_store())
    rows = table_of(part)
    assert [row["origin"] for row in rows] == ["good", "empty", "noise", "gone"] and part.num_rows == 4
    assert rows[0]["length"] == 10 and len(rows[0]["data"]) == 128 and rows[0]["label"] == "a"
    assert rows[0]["given"] == SPLITS.index("test") and rows[0]["group"] == int(content_id("anna"), 16)
    assert rows[1]["dropped"] == "no samples" and rows[1]["data"] is None and rows[1]["given"] == -1
    assert "not a readable sound" in rows[2]["error"] and rows[3]["error"] == "cannot be read"


def test_only_the_characters_of_a_cut_document_that_are_kept_count() -> None:
    corpus = FewRecords(make_record("short", "äb"), make_record("long", "abcdefgh"))
    rows = table_of(read(corpus, data_spec({"kind": "bytes", "packing": "documents", "length": 6}), memory_store()))
    assert [(row["length"], row["characters"], row["utf8_bytes"]) for row in rows] == [(2, 2, 3), (8, 5, 5)]


def test_nothing_of_an_opted_out_record_is_kept_but_where_it_was() -> None:
    corpus = FewRecords(make_record("a:1", "mine, take it out", label="me"), make_record("a:2", "yours"))
    lists = Lists(OptOut(frozenset({content_id("mine, take it out")})))
    out, kept = table_of(read(corpus, data_spec({"kind": "bytes"}), memory_store(), lists))
    assert out["dropped"] == "opt-out" and out["data"] is None and out["label"] is None and out["signature"] is None
    assert kept["dropped"] is None and kept["data"] == b"yours\xf5"


def test_a_flipped_bit_in_a_part_is_noticed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    part = read(FewRecords(make_record("a", "some text " * 50)), data_spec({"kind": "bytes"}), store)
    path = tmp_path / f"{part.name}.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(PART_SCHEMA.names.index("data"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(PreparedDataError, match=part.name):
        part.rows(np.array([0]), ["data"])


def test_an_unfinished_part_is_not_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    def rows() -> Iterator[dict[str, Any]]:
        yield {"file": 0, "data": b"x" * 5_000_000}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_part(store, {"kind": "test", "files": [["a", "d"]]}, rows())
    assert find_parts(store) == {} and list(tmp_path.iterdir()) == []


def in_parts(texts: list[str], sizes: list[int], data: DataSpec, store: Store) -> list[Part]:
    """The texts as records of one file that was read in parts of these sizes, in a mixed order."""
    parts = []
    start = 0
    for number, size in enumerate([*sizes, len(texts)]):
        records = [make_record(f"{i}", text) for i, text in enumerate(texts[start : start + size], start)]
        folder = store.child(str(number))
        folder.make_dir()
        corpus = FewRecords(*records)
        for record, index in zip(corpus.records, range(start, start + size), strict=False):
            record["index"] = index
        if records:
            parts.append(read(corpus, data, folder, number=number))
        start += size
    return parts[::-1]


def cut(parts: list[Part], data: DataSpec, store: Store, rows_per_shard: int) -> tuple[Layout, dict[str, Any]]:
    """Everything after reading, as `prepare` does it: split → (ids, x, tail)."""
    codec: Any = make_codec(data.codec)
    rows = load_rows(parts, [np.zeros(1, np.int64)] * len(parts))
    selection: Selection = select(rows, np.zeros((0, 2), np.int64), data, str)
    coded_store = None
    if codec.needs_fit:
        coded_store = store.child("coded")
        coded_store.make_dir()
        items = [
            {"part": place, "rows": np.sort(rows.row[(rows.part == place) & (selection.side < 3)]).tobytes()}
            for place in range(len(parts))
        ]
        counts: Counter[str] = Counter()
        for item in items:
            counts.update(json.loads(CountStage(codec.state(), parts)(item)["counts"]))
        codec.fit_counts(counts)
        for item in items:
            answer = EncodeStage(codec.state(), parts, coded_store)(item)
            mine = np.flatnonzero((rows.part == answer["part"]) & (selection.side < 3))
            mine = mine[np.argsort(rows.row[mine])]
            rows.numbers["tokens"][mine] = np.frombuffer(answer["tokens"], np.int64)
    layout = codec.layout()
    store.make_dir("set")
    stage = CutStage(parts, coded_store, store.child("set"), layout)
    found: dict[str, Any] = {}
    for split in SPLITS:
        tables, tail = [], []
        for item in plan_shards(selection, split, layout, rows_per_shard):
            answer = stage(item)
            tail = json.loads(answer["tail"])
            entry = json.loads(answer["shard"])
            if entry is not None:
                stream = pa.BufferReader(store.child("set").read_bytes(entry["file"]))
                tables.append(pq.read_table(stream))
                assert tables[-1].num_rows == entry["rows"] <= rows_per_shard
        x = b"".join(value for table in tables for value in table["x"].to_pylist())
        ids = [value for table in tables for value in table["id"].to_pylist()]
        found[split] = (ids, np.frombuffer(x, layout.stored_dtype), tail, codec)
    return layout, found


@given(
    st.lists(st.text(st.sampled_from("abcdefgh "), min_size=1, max_size=40), min_size=3, max_size=25),
    st.lists(st.integers(0, 6), max_size=4),
    st.integers(1, 7),
    st.sampled_from(["bytes", "characters"]),
)
def test_shards_of_windows_hold_the_stream_whatever_the_parts(
    texts: list[str], sizes: list[int], rows_per_shard: int, kind: str
) -> None:
    codec = {"kind": kind, "length": 8}
    data = data_spec(codec, split={"validation": 0.3, "test": 0.3}, duplicates={"exact": "keep", "near": "off"})
    store = memory_store()
    parts = in_parts(texts, sizes, data, store)
    kept = [text for text in texts if text.strip()]
    rows = load_rows(parts, [np.zeros(1, np.int64)] * len(parts))
    side = select(rows, np.zeros((0, 2), np.int64), data, str).side
    assume((side == 0).any())  # a codec cannot be fitted on a training split that is empty
    layout, found = cut(parts, data, store, rows_per_shard)
    assert int((side < 3).sum()) == len(kept)
    alive = [text for text, row_side in zip(texts, side.tolist(), strict=True) if row_side < 3]
    assert alive == kept
    for place, split in enumerate(SPLITS):
        _, x, tail, fitted = found[split]
        wanted = [text for text, row_side in zip(texts, side.tolist(), strict=True) if row_side == place]
        stream = np.concatenate([np.zeros(0, np.int64), *(fitted.encode(text) for text in wanted)])
        np.testing.assert_array_equal(np.concatenate([x, np.array(tail, x.dtype)]), stream.astype(x.dtype))
        assert len(tail) < layout.length


@given(st.integers(3, 40), st.lists(st.integers(0, 9), max_size=4), st.integers(1, 9))
def test_shards_of_examples_hold_each_kept_record_once_in_the_corpus_s_order(
    count: int, sizes: list[int], rows_per_shard: int
) -> None:
    codec = {"kind": "bytes", "packing": "documents", "length": 8}
    data = data_spec(codec, split={"validation": 0.2, "test": 0.2}, duplicates={"near": "off"})
    texts = [f"{i:05d}" for i in range(count)]
    store = memory_store()
    _, found = cut(in_parts(texts, sizes, data, store), data, store, rows_per_shard)
    order = {content_id(text): place for place, text in enumerate(texts)}
    places = [[order[identifier] for identifier in found[split][0]] for split in SPLITS]
    assert all(split == sorted(split) for split in places)
    assert sorted(place for split in places for place in split) == list(range(count))
