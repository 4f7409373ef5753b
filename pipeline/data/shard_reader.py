"""Reading shards back: whole or a row group at a time, from any filesystem, each failure with the shard's name.

Pure functions of files, in whichever process or thread needs them; no file stays open between two calls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.layout import Layout
from pipeline.data.prompts import PROMPT_DTYPE
from pipeline.errors import PreparedDataError
from pipeline.storage import Store


@dataclass(frozen=True)
class Examples:
    """Rows of a shard: `x` `[N, *shape]` of the stored type, read-only; `label` int64 `[N]`, -1 for none or one that
    training never saw; `prompt` int16 `[N, P]` where the set has prompts; `ids`, N strings, where asked for."""

    x: np.ndarray
    label: np.ndarray
    prompt: np.ndarray | None = None
    ids: pa.ChunkedArray | None = None


class ShardReader:
    """One shard of a prepared set as its entry in the manifest describes it; `store` is the set's folder.

    Every method raises PreparedDataError, naming the shard, when it is missing, of another size or number of rows
    than the manifest says, or cannot be read.
    """

    def __init__(self, store: Store, entry: Mapping[str, Any], layout: Layout) -> None:
        self.store, self.entry, self.layout = store, entry, layout
        self.where = store.path(entry["file"])
        self.rows: int = entry["rows"]
        self.group_rows: int = entry["group_rows"]
        self._footer: pq.FileMetaData | None = None

    @property
    def num_groups(self) -> int:
        """Row groups in the shard."""
        return -(-self.rows // self.group_rows)

    def rows_in(self, group: int) -> int:
        """Rows of a row group: as many as all others, or fewer in the last."""
        return min(self.group_rows, self.rows - group * self.group_rows)

    def groups(self, with_ids: bool = False, verify: bool = False) -> Iterator[tuple[int, Examples]]:
        """Every row group with the number of its first row, from one read of the whole file.

        When `verify`, also raises when the bytes have changed.
        """
        columns = ["label", "x"] + ["prompt"] * bool(self.layout.prompt_length) + ["id"] * with_ids
        with self._explained(), self.store.filesystem.open_input_file(self.where) as stream:
            self._check_size(stream.size())
            data = stream.read_buffer()
        if verify and hashlib.sha256(data).hexdigest() != self.entry["sha256"]:
            raise self._error("the shard was changed, its sha256 is not the manifest's")
        with self._explained(), _open(pa.BufferReader(data)) as file:
            self._check_rows(file.metadata)
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=columns, use_threads=False)
                yield number * self.group_rows, self._examples(table)

    def group(self, number: int) -> np.ndarray:
        """The examples of one row group `[N, *shape]`, for which no more than it and, once, the footer are read."""
        with self._explained(), self.store.filesystem.open_input_file(self.where) as stream:
            self._check_size(stream.size())
            with _open(stream, self._footer) as file:
                self._check_rows(file.metadata)
                self._footer = file.metadata
                return self._x_of(file.read_row_group(number, columns=["x"], use_threads=False))

    def names(self, number: int) -> tuple[list[str], list[str]]:
        """The origins and the ids of the records of one row group, of which the examples are not read."""
        with self._explained(), self.store.filesystem.open_input_file(self.where) as stream:
            self._check_size(stream.size())
            with _open(stream, self._footer) as file:
                self._check_rows(file.metadata)
                table = file.read_row_group(number, columns=["origin", "id"], use_threads=False)
        return table["origin"].to_pylist(), table["id"].to_pylist()

    def check_bytes(self, piece_bytes: int = 2**20) -> None:
        """Read the file piece by piece and also raise when its bytes have changed."""
        sha256 = hashlib.sha256()
        with self._explained(), self.store.filesystem.open_input_file(self.where) as stream:
            self._check_size(stream.size())
            while piece := stream.read_buffer(piece_bytes):
                sha256.update(piece)
            if sha256.hexdigest() != self.entry["sha256"]:
                raise self._error("the shard was changed, its sha256 is not the manifest's")
            stream.seek(0)
            with _open(stream) as file:
                self._check_rows(file.metadata)

    def _examples(self, table: pa.Table) -> Examples:
        labels = self.layout.labels
        if labels:
            places = pc.index_in(table["label"], value_set=pa.array(labels, pa.string()))
            label = np.asarray(pc.fill_null(places, -1).to_numpy(), np.int64)
        else:
            label = np.full(table.num_rows, -1, np.int64)
        ids = table["id"] if "id" in table.column_names else None
        return Examples(self._x_of(table), label, self._prompt_of(table), ids)

    def _x_of(self, table: pa.Table) -> np.ndarray:
        layout = self.layout
        return self._array(table, "x", layout.stored_dtype, layout.shape)

    def _prompt_of(self, table: pa.Table) -> np.ndarray | None:
        length = self.layout.prompt_length
        return self._array(table, "prompt", PROMPT_DTYPE, (length,)) if length else None

    def _array(self, table: pa.Table, name: str, stored_dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A column of values of fixed size, as `[N, *shape]`."""
        column, dtype = table[name], np.dtype(stored_dtype)
        width = math.prod(shape) * dtype.itemsize
        if column.type != pa.binary(width) or column.null_count:
            raise self._error(
                f"its column {name!r} is of type {column.type}, the manifest's layout has {width} bytes an example"
            )
        parts = [
            np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
            for chunk in column.chunks
            if len(chunk)
        ]
        flat = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint8), *parts])
        return flat.view(dtype).reshape(-1, *shape)

    def _check_size(self, size: int) -> None:
        if size != self.entry["bytes"]:
            raise self._error(f"{size:,} bytes, the manifest says {self.entry['bytes']:,}")

    def _check_rows(self, metadata: pq.FileMetaData) -> None:
        if metadata.num_rows != self.rows:
            raise self._error(f"{metadata.num_rows:,} rows, the manifest says {self.rows:,}")
        if metadata.num_row_groups != self.num_groups:
            raise self._error(
                f"{metadata.num_row_groups:,} row groups, the manifest says {self.group_rows:,} rows each"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._error("the shard is missing") from None
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self._error(f"the shard cannot be read ({error})") from None

    def _error(self, what: str) -> PreparedDataError:
        return PreparedDataError(f"{self.where}: {what}; delete {self.store.uri} and run 'atelier prepare' again")


def _open(source: Any, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    # Pages carry a CRC-32: a bit that flipped since the set was verified is found where it is read, for a tenth of the
    # time. A column's row group is one read; `pre_buffer` would only add threads.
    return pq.ParquetFile(source, metadata=footer, pre_buffer=False, page_checksum_verification=True)
