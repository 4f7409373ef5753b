"""Writing shards: Parquet files of exactly so many rows, each with its checksum.

Runs wherever `prepare` writes; `prepared` reads them back.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.layout import Layout
from pipeline.storage import Store


class ShardWriter:
    """Writes the examples of one split as shards of exactly `rows_per_shard` rows (the last may be shorter).

    Holds less than one shard's rows beyond the block it is given.
    """

    def __init__(self, store: Store, split: str, layout: Layout, rows_per_shard: int) -> None:
        self.store, self.split, self.rows_per_shard = store, split, rows_per_shard
        self.tensor_type = pa.fixed_shape_tensor(pa.from_numpy_dtype(layout.stored_dtype), layout.shape)
        self.shape, self.dtype = layout.shape, np.dtype(layout.stored_dtype)
        self.shards: list[dict[str, Any]] = []
        self.labels: Counter[str] = Counter()
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, x: np.ndarray, ids: pa.Array, origins: pa.Array, labels: pa.Array) -> None:
        """Add N examples: `x` `[N, *shape]` of the stored type; `labels` are strings, null where unknown.

        Raises: StorageError when a shard cannot be written.
        """
        storage = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(x, self.dtype).reshape(-1)), int(np.prod(self.shape))
        )
        tensors = pa.ExtensionArray.from_storage(self.tensor_type, storage)
        columns = [ids.cast(pa.string()), origins.cast(pa.string()), labels.cast(pa.string()), tensors]
        self._waiting.append(pa.table(columns, names=["id", "origin", "label", "x"]))
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
        sink = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks(), sink, compression="zstd", use_dictionary=["label"])
        data = sink.getvalue().to_pybytes()
        file = f"{self.split}-{len(self.shards):05d}.parquet"
        self.store.write_bytes(data, file)
        sha256 = hashlib.sha256(data).hexdigest()
        self.shards.append({"file": file, "rows": table.num_rows, "bytes": len(data), "sha256": sha256})


def rows_per_shard(layout: Layout, megabytes: float) -> int:
    """How many examples of `layout` make a shard of `megabytes` (2^20 bytes) before compression; at least one."""
    example = layout.dimensions * np.dtype(layout.stored_dtype).itemsize
    return max(1, int(megabytes * 2**20) // example)
