"""Parts: what was read, decoded and cleaned of one unit of a corpus, kept on the storage as one Parquet file.

Ray Data's workers write parts and read them again; the driver reads their small columns. A part's name is a hash of
its unit (files with their digests, range) and its folder's of how it was read, so that a part is never out of
date: what a killed preparation read, and what an earlier one read of a smaller corpus, is not read again.

    read/<reading key>/<unit hash>.parquet      PART_SCHEMA
    read/<reading key>/<unit hash>.json         written last: the unit, its files, the number of rows
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.records import Unit, unit_identity
from pipeline.data.shards import SAMPLE_BYTES, is_worth_compressing
from pipeline.errors import PreparedDataError
from pipeline.storage import Store

PARTS_FOLDER = "read"
ROWS_PER_GROUP = 4096
BYTES_PER_GROUP = 4 * 2**20

CODED_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("tokens", "characters", "utf8_bytes", "unknown")] + [("data", pa.large_binary())]
)
"""What encoding adds to a row: `data`, the bytes of one example in the stored type, its number of `tokens` (elements),
and for text the characters and bytes that it covers and its unknown symbols."""

PART_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),  # place of the source file in the part's `files`
        ("index", pa.int64()),  # place of the record in its file
        ("piece", pa.int32()),  # of a record that gives several rows: segments of sound, parts of a text
        ("record", pa.uint64()),  # the record's id: its content as the corpus has it
        ("bytes_id", pa.uint64()),  # where that is a file's text, the same of the file's bytes, or 0
        ("content", pa.uint64()),  # the hash of what is left of it after cleaning and shaping
        ("group", pa.uint64()),  # the hash of the group's name, 0 for none
        ("given", pa.int8()),  # the split that the source gives, as a place in SPLITS, or -1
        *((name, pa.string()) for name in ("origin", "label", "prompt", "error", "dropped", "detail")),
        *((name, pa.string()) for name in ("changed", "personal", "facts")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("length", pa.int64()),  # characters of a text, samples of a sound
        ("signature", pa.binary()),
        *CODED_SCHEMA,
    ]
)

Row = dict[str, Any]


def part_name(identity: dict[str, Any]) -> str:
    """The name of the part of a unit: a hash of its identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Part:
    """One part that is there: its `name` in the folder `store`, its source `files` as (name,
    digest), whether they are in it whole, and its number of rows."""

    store: Store
    name: str
    files: tuple[tuple[str, str], ...]
    whole_files: bool
    num_rows: int

    def column_table(self, columns: Sequence[str]) -> pa.Table:
        """The columns of all rows."""
        with _opened(self.store, self.name) as file:
            return file.read(columns=list(columns))

    def rows(self, numbers: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The rows of ascending `numbers` int `[n]`; holds one group of rows beyond them at a time."""
        return read_rows(self.store, self.name, numbers, columns)


def read_rows(store: Store, name: str, numbers: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """The rows of ascending `numbers` of a Parquet file `name` of `write_part` or `write_coded`."""
    taken: list[pa.Table] = []
    with _opened(store, name) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            start, stop = np.searchsorted(numbers, [first, first + count])
            if stop > start:
                table = file.read_row_group(group, columns=list(columns))
                if stop - start < count:
                    table = table.take(pa.array(numbers[start:stop] - first))
                taken.append(table)
            first += count
        empty = file.schema_arrow.empty_table().select(list(columns)) if not taken else None
    return empty if empty is not None else pa.concat_tables(taken)


def joined(column: pa.ChunkedArray) -> np.ndarray:
    """The bytes of all values of a large_binary column, one after the other, uint8."""
    pieces = []
    for chunk in column.chunks:
        _, offsets, values = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        if len(chunk) and ends[-1] > ends[0]:
            pieces.append(np.frombuffer(values, np.uint8)[ends[0] : ends[-1]])
    return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, np.uint8)])


class _opened:
    """A part's Parquet file; a page whose checksum is wrong becomes a PreparedDataError."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, f"{name}.parquet"

    def __enter__(self) -> pq.ParquetFile:
        self.stream = self.store.open_input(self.name)
        try:
            self.file = pq.ParquetFile(self.stream, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            self.stream.close()
            raise self._damaged(error) from None
        return self.file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        self.stream.close()
        if isinstance(error, pa.ArrowException | OSError):
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> PreparedDataError:
        return PreparedDataError(
            f"{self.store.path(self.name)}: cannot be read ({error}); delete {self.store.uri} and prepare again"
        )


def write_part(store: Store, unit: Unit, rows: Iterable[Row]) -> Part:
    """Write the part of a unit: its rows first, then the file that says it is whole."""
    name = part_name(unit_identity(unit))
    count = _write(store, f"{name}.parquet", rows, PART_SCHEMA)
    entry = part_entry(unit, count)
    # Not indented: with thousands of files Python's slow encoder took a tenth of the reading.
    store.write_bytes(json.dumps(entry).encode(), f"{name}.json")
    return part_of(store, name, entry)


def write_coded(store: Store, name: str, rows: Iterable[Row]) -> int:
    """Write CODED_SCHEMA rows, one for each row of the part `name`, null where it is not kept; their number."""
    return _write(store, f"{name}.parquet", rows, CODED_SCHEMA)


def _write(store: Store, file: str, rows: Iterable[Row], schema: pa.Schema) -> int:
    count = 0
    tables = _tables(rows, schema)
    first = next(tables, schema.empty_table())
    sample = joined(first["data"])[:SAMPLE_BYTES].tobytes()
    # lz4 and page checksums: parts are read back about twice, and a flipped bit must not become data.
    compression = dict.fromkeys(schema.names, COMPRESSION)
    if not is_worth_compressing(sample, COMPRESSION):
        compression["data"] = "NONE"
    with (
        store.open_output(file) as sink,
        pq.ParquetWriter(
            sink, schema, compression=compression, write_page_checksum=True, use_dictionary=_REPEATED
        ) as writer,
    ):
        for table in chain([first], tables):
            writer.write_table(table)
            count += table.num_rows
    return count


COMPRESSION = "lz4"
_REPEATED = ["label", "prompt", "error", "dropped", "detail", "changed", "personal", "facts"]


def _tables(rows: Iterable[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows as tables of a bounded number of rows and bytes of `data`."""
    blank, values_of = dict.fromkeys(schema.names), itemgetter(*schema.names)
    waiting: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        waiting.append(values_of({**blank, **row}))
        size += len(row.get("data") or b"")
        if len(waiting) >= ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
            yield _table(waiting, schema)
            waiting, size = [], 0
    if waiting:
        yield _table(waiting, schema)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows of values in the schema's order; a column at a time, which is six times as fast as `from_pylist`."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def part_entry(unit: Unit, rows: int) -> dict[str, Any]:
    """What the file beside a part says of it."""
    whole = unit.get("whole_files", False)
    return {"unit": unit_identity(unit), "files": unit["files"], "whole_files": whole, "rows": rows}


def find_parts(store: Store, known: Mapping[str, dict[str, Any]] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """What the folder says of each whole part in it, by name; of those that are `known` it is not read again."""
    names = [name.removesuffix(".json") for name in store.list_names() if name.endswith(".json")]
    return {name: known[name] if name in known else store.read_json(f"{name}.json") for name in names}


def part_of(store: Store, name: str, entry: dict[str, Any]) -> Part:
    files = tuple((file, digest) for file, digest in entry["files"])
    return Part(store, name, files, entry["whole_files"], entry["rows"])


def forget(part: Part) -> None:
    """Remove a part: first what says that it is whole."""
    part.store.delete_file(f"{part.name}.json")
    part.store.delete_file(f"{part.name}.parquet")
