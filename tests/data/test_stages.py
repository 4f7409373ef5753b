"""The parallel steps without Ray: rows that carry their failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.codec import make_codec
from pipeline.data.records import Corpus, make_record
from pipeline.data.stages import ENCODED_SCHEMA, READ_SCHEMA, EncodeStage, ReadStage
from pipeline.spec import BytesCodecSpec, SplitSpec, WaveformCodecSpec


class FewRecords(Corpus):
    """A corpus of given records."""

    def __init__(self, *records: Any) -> None:
        self.records = records

    def fingerprint(self) -> str:
        return "few"

    def _units(self) -> Any:
        return [{}]

    def _items(self, unit: Any) -> Any:
        return iter(self.records)

    def _record(self, item: Any) -> Any:
        return item


def encoded(corpus: Corpus, spec: Any, split: SplitSpec) -> list[dict[str, Any]]:
    codec = make_codec(spec)
    rows = []
    for table in ReadStage(corpus, codec.state(), split)(pa.table({"unit": ["{}"]})):
        assert table.schema == READ_SCHEMA
        for result in EncodeStage(codec.state())(table):
            assert result.schema == ENCODED_SCHEMA
            rows.extend(result.to_pylist())
    return rows


def test_failures_stay_rows_with_their_reason() -> None:
    corpus = FewRecords(
        make_record("good", np.ones(10, np.float32), label="a", rate=8000),
        make_record("empty", np.zeros(0, np.float32), rate=8000),
        make_record("noise", b"not a sound"),
        make_record("gone", b"", error="cannot be read"),
    )
    rows = encoded(corpus, WaveformCodecSpec(kind="waveform", num_samples=64), SplitSpec())
    assert [row["origin"] for row in rows] == ["good", "empty", "noise", "gone"]
    assert rows[0]["length"] == 10 and len(rows[0]["x"]) == 128 and rows[0]["label"] == "a"
    assert rows[1]["dropped"] == "no samples" and rows[1]["x"] is None
    assert "not a readable sound" in rows[2]["error"] and rows[3]["error"] == "cannot be read"


def test_only_the_characters_of_a_cut_document_that_are_kept_count() -> None:
    corpus = FewRecords(make_record("short", "äb"), make_record("long", "abcdefgh"))
    rows = encoded(corpus, BytesCodecSpec(kind="bytes", packing="documents", length=6), SplitSpec())
    assert [(row["length"], row["characters"], row["utf8_bytes"]) for row in rows] == [(2, 2, 3), (8, 5, 5)]
