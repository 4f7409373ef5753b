"""The two steps of preparing that run in parallel: read a unit of the corpus, and encode what was read.

Pure functions from Arrow table to Arrow tables, called in Ray Data's workers; the driver makes them and joins them.
Rows that fail stay rows, with their `error` (quarantined) or `dropped` reason, so that the driver can count them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.cleaning import clean
from pipeline.data.codec import Codec, codec_from_state
from pipeline.data.records import Corpus, Record, content_id
from pipeline.data.splits import assign_split, split_text
from pipeline.errors import CodecError
from pipeline.spec import SplitSpec

READ_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "record", "origin", "split", "label", "error", "dropped")]
    + [("raw", pa.large_binary())]
)
ENCODED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "record", "origin", "split", "label", "error", "dropped")]
    + [("x", pa.large_binary())]
    + [(name, pa.int64()) for name in ("length", "characters", "utf8_bytes", "unknown")]
)
ROWS_PER_TABLE = 4096
BYTES_PER_TABLE = 16 * 2**20

Row = dict[str, Any]


class ReadStage:
    """Units → decoded, cleaned records with their split: `READ_SCHEMA`, where `raw` holds the bytes of the codec's raw
    form (UTF-8, uint8 pixels or float32 samples). `record` is the corpus's own record, of which a text that is split
    by position gives several parts, each with an `id`."""

    def __init__(self, corpus: Corpus, codec_state: dict[str, Any], split: SplitSpec) -> None:
        self.corpus, self.codec_state, self.split = corpus, codec_state, split

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        codec = codec_from_state(self.codec_state)
        for unit in units["unit"].to_pylist():
            rows = (row for record in self.corpus.read(json.loads(unit)) for row in self._rows(record, codec))
            yield from _tables(rows, READ_SCHEMA, "raw")

    def _rows(self, record: Record, codec: Codec) -> Iterator[Row]:
        row: Row = {"record": record["id"], **{key: record[key] for key in ("id", "origin", "label", "error")}}
        if record["error"] is not None:
            yield row
            return
        try:
            raw, dropped = clean(codec.decode_payload(record["payload"], record["rate"]))
        except CodecError as error:
            yield {**row, "error": str(error)}
            return
        if dropped is not None:
            yield {**row, "dropped": dropped}
        elif self.split.kind == "position":
            for split, part in split_text(raw, self.split).items():
                if part:
                    yield {**row, "id": content_id(part), "split": split, "raw": part.encode("utf-8")}
        else:
            split = assign_split(record["id"], record["split"], self.split)
            yield {**row, "split": split, "raw": _to_bytes(raw)}


class EncodeStage:
    """`READ_SCHEMA` → `ENCODED_SCHEMA`, where `x` holds the bytes of one example in the stored type.

    `length` is the record's own, in characters or samples; `characters` and `utf8_bytes` are what its example covers
    (less than the whole where a document was cut).
    """

    def __init__(self, codec_state: dict[str, Any]) -> None:
        self.codec_state = codec_state

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        codec = codec_from_state(self.codec_state)
        end = codec.layout().end_token if getattr(codec.spec, "packing", None) == "documents" else None
        yield from _tables((self._row(row, codec, end) for row in table.to_pylist()), ENCODED_SCHEMA, "x")

    def _row(self, row: Row, codec: Codec, end: int | None) -> Row:
        data = row.pop("raw")
        if data is None:
            return row
        raw = _from_bytes(data, codec)
        example = codec.encode(raw)
        row["x"], row["unknown"] = example.tobytes(), codec.count_unknown(raw)
        if isinstance(raw, str):
            whole = end is None or end in example
            covered = raw if whole else codec.decode(example)
            row |= {"length": len(raw), "characters": len(covered), "utf8_bytes": len(covered.encode())}
        elif codec.modality == "audio":
            row["length"] = len(raw)
        return row


def _to_bytes(raw: Any) -> bytes:
    return raw.encode("utf-8") if isinstance(raw, str) else raw.tobytes()


def _from_bytes(data: bytes, codec: Codec) -> Any:
    if codec.modality == "text":
        return data.decode("utf-8")
    if codec.modality == "image":
        return np.frombuffer(data, np.uint8).reshape(*codec.spec.size, codec.spec.channels)
    return np.frombuffer(data, np.float32)


def _tables(rows: Iterator[Row], schema: pa.Schema, heavy: str) -> Iterator[pa.Table]:
    """Rows as tables of a bounded number of rows and bytes (of the column `heavy`)."""
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += len(row.get(heavy) or b"")
        if len(waiting) >= ROWS_PER_TABLE or size >= BYTES_PER_TABLE:
            yield pa.Table.from_pylist(waiting, schema)
            waiting, size = [], 0
    yield pa.Table.from_pylist(waiting, schema)
