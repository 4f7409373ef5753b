"""Writing shards: Parquet files of exactly so many rows, each with its checksum.

Runs wherever `prepare` writes; `shard_reader` reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.layout import Layout
from pipeline.data.prompts import PROMPT_DTYPE, encode_prompts
from pipeline.storage import Store

GROUP_BYTES = 2**20
"""Of examples in a row group, before compression: what a lane of continuous text holds, and the least that is read."""
COMPRESSION, COMPRESSION_LEVEL = "zstd", 3
"""By `tests.benchmarks.compression`, bytes to one of examples on digits, colour pictures, speech, English and Chinese
text as bytes, and byte pairs; then MB/s written and read by one thread:

    zstd 1  .21 .97 .75 .39 .53 .63   100–400   490–1,120
    zstd 3  .21 .94 .74 .35 .45 .56    70–320   350–950
    zstd 9  .20 .93 .73 .32 .42 .53    20–60    300–970
    lz4     .29 .97 .92 .59 .71 .81   160–520   680–1,610
    snappy  .30 .99 .92 .57 .68 .77   150–830   260–1,610

Training takes some 50 MB/s and decoding a corpus is slower than writing, so size decides, until it costs four times the
time. BYTE_STREAM_SPLIT made files larger and reading 2 to 3 times slower, DELTA_BYTE_ARRAY changed nothing. What does
not become a tenth smaller, photographs above all, is stored as it is.
"""
LEAST_SAVED = 0.1
SAMPLE_BYTES = 2**18


class ShardWriter:
    """Writes the examples of one split, block by block, as shards of exactly `rows_per_shard` rows (the last may be
    shorter), on one process; holds less than one shard's rows beyond the block it is given."""

    def __init__(self, store: Store, split: str, layout: Layout, rows_per_shard: int) -> None:
        self.store, self.split, self.layout, self.rows_per_shard = store, split, layout, rows_per_shard
        self.shards: list[dict[str, Any]] = []
        self.labels: Counter[str] = Counter()
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(
        self, x: np.ndarray, ids: pa.Array, origins: pa.Array, labels: pa.Array, prompts: pa.Array | None = None
    ) -> None:
        """Add N examples, as `shard_table` takes them. Raises: StorageError when a shard cannot be written."""
        self._waiting.append(shard_table(self.layout, x, ids, origins, labels, prompts))
        self._waiting_rows += len(x)
        self.rows += len(x)
        self.labels.update(label for label in labels.to_pylist() if label is not None)
        if self._waiting_rows >= self.rows_per_shard:
            table = pa.concat_tables(self._waiting)
            whole = table.num_rows // self.rows_per_shard * self.rows_per_shard
            for start in range(0, whole, self.rows_per_shard):
                self._write_shard(table.slice(start, self.rows_per_shard))
            self._waiting, self._waiting_rows = [table.slice(whole)], table.num_rows - whole

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; the manifest's entries of all shards."""
        if self._waiting_rows:
            self._write_shard(pa.concat_tables(self._waiting))
        self._waiting, self._waiting_rows = [], 0
        return self.shards

    def _write_shard(self, table: pa.Table) -> None:
        self.shards.append(write_shard(self.store, self.split, len(self.shards), self.layout, table))


def shard_table(
    layout: Layout,
    x: np.ndarray,
    ids: pa.Array,
    origins: pa.Array,
    labels: pa.Array,
    prompts: pa.Array | None = None,
) -> pa.Table:
    """N examples as a shard has them: `x` `[N, *shape]` of the stored type; `labels` and, where the layout has prompts,
    `prompts` strings, null where unknown."""
    schema = shard_schema(layout)
    columns = {"id": ids.cast(pa.string()), "origin": origins.cast(pa.string()), "label": labels.cast(pa.string())}
    if layout.prompt_length:
        texts = [None] * len(x) if prompts is None else prompts.to_pylist()
        columns["prompt"] = _fixed(schema, "prompt", encode_prompts(texts, layout.prompt_length))
    columns["x"] = _fixed(schema, "x", np.ascontiguousarray(x, layout.stored_dtype))
    return pa.table(columns, schema)


def _fixed(schema: pa.Schema, name: str, values: np.ndarray) -> pa.Array:
    """Values `[N, ...]` in C order as a column of N values of fixed size."""
    return pa.Array.from_buffers(schema.field(name).type, len(values), [None, pa.py_buffer(values)])


def write_shard(store: Store, split: str, number: int, layout: Layout, table: pa.Table) -> dict[str, Any]:
    """Write the shard `number` of a split; the manifest's entry of it. Raises: StorageError."""
    group_rows = max(1, GROUP_BYTES // layout.example_bytes)
    data = as_parquet(table, group_rows)
    file = f"{split}-{number:05d}.parquet"
    store.write_bytes(data, file)
    return {
        "file": file,
        "rows": table.num_rows,
        "group_rows": group_rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def shard_schema(layout: Layout) -> pa.Schema:
    """The columns of a shard. An example is one value of fixed size, its numbers in C order: as a list, which
    Parquet widens to 32 bits, it took 5 to 10 times as long to read, and up to twice the room."""
    about = {"dtype": layout.stored_dtype, "shape": json.dumps(layout.shape)}
    columns = [pa.field(name, pa.string()) for name in ("id", "origin", "label")]
    if layout.prompt_length:
        told = {"dtype": PROMPT_DTYPE, "shape": json.dumps([layout.prompt_length])}
        width = layout.prompt_length * np.dtype(PROMPT_DTYPE).itemsize
        columns.append(pa.field("prompt", pa.binary(width), metadata=told))
    return pa.schema([*columns, pa.field("x", pa.binary(layout.example_bytes), metadata=about)])


def as_parquet(table: pa.Table, group_rows: int) -> bytes:
    """A Parquet file of `table` in row groups of `group_rows`; equal tables give equal bytes."""
    table = table.combine_chunks()
    examples = table["x"].chunk(0) if len(table) else pa.array([], table["x"].type)
    width = table["x"].type.byte_width
    sample = examples.buffers()[1].slice(examples.offset * width, min(len(table) * width, SAMPLE_BYTES))
    names = [name for name in table.column_names if name != "x" or is_worth_compressing(sample, COMPRESSION)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression={"x": "NONE", **dict.fromkeys(names, COMPRESSION)},
        compression_level=dict.fromkeys(names, COMPRESSION_LEVEL),
        use_dictionary=[name for name in ("label", "prompt") if name in table.column_names],
        write_statistics=False,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue().to_pybytes())


def is_worth_compressing(sample: Any, compression: str) -> bool:
    """Whether bytes become smaller by `LEAST_SAVED`, judged by some of them."""
    size = memoryview(sample).nbytes
    return bool(len(pa.Codec(compression).compress(sample)) <= (1 - LEAST_SAVED) * size)


def rows_per_shard(layout: Layout, megabytes: float) -> int:
    """How many examples of `layout` make a shard of `megabytes` (2^20 bytes) before compression; at least one."""
    return max(1, int(megabytes * 2**20) // layout.example_bytes)
