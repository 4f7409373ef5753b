"""The parallel steps without Ray: splits, and rows that carry their failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.codec import make_codec
from pipeline.data.records import Corpus, content_id, make_record
from pipeline.data.stages import ENCODED_SCHEMA, READ_SCHEMA, EncodeStage, ReadStage, assign_split, split_text
from pipeline.spec import BytesCodecSpec, SplitSpec, WaveformCodecSpec


class FewRecords(Corpus):
    """A corpus of given records."""

    def __init__(self, *records: Any) -> None:
        self.records = records

    def _scan(self) -> Any:
        return []

    def _units(self, known: Any) -> Any:
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


@given(st.text(max_size=300), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_text_cut_by_position_is_whole_again_when_joined(text: str, validation: float, test: float) -> None:
    parts = split_text(text, SplitSpec(kind="position", validation=validation, test=test))
    assert parts["train"] + parts["validation"] + parts["test"] == text


def test_nine_tenths_is_the_field_s_split_of_tinyshakespeare() -> None:
    parts = split_text("x" * 1_115_394, SplitSpec(kind="position", validation=0, test=0.1))
    assert {name: len(part) for name, part in parts.items()} == {"train": 1003854, "validation": 0, "test": 111540}


def test_hash_splits_have_their_shares_and_never_move() -> None:
    split = SplitSpec(validation=0.1, test=0.2)
    sides = [assign_split(content_id(str(i)), None, split) for i in range(20_000)]
    assert abs(sides.count("test") / 20_000 - 0.2) < 0.01
    assert abs(sides.count("validation") / 20_000 - 0.1) < 0.01
    wider = SplitSpec(validation=0.1, test=0.3)
    moved = [assign_split(content_id(str(i)), None, wider) for i in range(1000)]
    assert all(after == "test" for before, after in zip(sides, moved, strict=False) if before == "test")


def test_a_given_test_record_stays_test_and_validation_comes_from_training() -> None:
    split = SplitSpec(kind="given", validation=0.5, test=0)
    identifiers = [content_id(str(i)) for i in range(100)]
    assert {assign_split(i, "test", split) for i in identifiers} == {"test"}
    assert {assign_split(i, "train", split) for i in identifiers} == {"train", "validation"}


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
