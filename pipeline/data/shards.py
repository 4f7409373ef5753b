"""The prepared set on disk: Parquet shards and the manifest that names, counts and checksums them.

The driver of `prepare` writes shards with `ShardWriter` and the manifest last; every trainer and evaluator reads
them back with `Prepared.load_split`. A set is never changed after its manifest is there.

    prepared/<key>/train-00000.parquet …  id: string, origin: string, label: string, x: arrow.fixed_shape_tensor
    prepared/<key>/manifest.json
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.data.codec import Codec, codec_from_state
from pipeline.data.layout import Layout
from pipeline.errors import PreparedDataError
from pipeline.storage import Store

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
FOLDER = "prepared"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a prepared set is, of JSON types throughout.

    `corpus`: fingerprint, licence and source; `codec`: the fitted codec's state; `splits`: for each split its
    `rows` (examples), `records`, `characters` and `utf8_bytes` (text), `tail_tokens` (what a continuous stream
    leaves after its last whole window), `labels` (counts) and `shards` (file, rows, bytes, sha256); `report`:
    what was read, kept, dropped and quarantined, and why.
    """

    format_version: int
    key: str
    corpus: dict[str, Any]
    split: dict[str, Any]
    codec: dict[str, Any]
    layout: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Raises: PreparedDataError when a key is missing or the format is not this version's."""
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise PreparedDataError(f"the manifest has no {', '.join(missing)}; run 'atelier prepare' again")
        if values["format_version"] != FORMAT_VERSION:
            raise PreparedDataError(
                f"prepared set {values['key']} has format {values['format_version']}, this version reads "
                f"{FORMAT_VERSION}; run 'atelier prepare' again"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass
class SplitArrays:
    """A split in memory: `x` `[N, *shape]` of the stored type (uint16 widened to int32), `label` int64 `[N]` (-1
    unknown), `ids` of N strings, and `tail`, the tokens `[< length]` after the last whole window (or empty)."""

    x: Tensor
    label: Tensor
    ids: Sequence[Any]
    tail: Tensor

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass(frozen=True)
class Prepared:
    """A complete prepared set; `store` is its own folder."""

    store: Store
    manifest: Manifest

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def codec(self) -> Codec:
        return codec_from_state(self.manifest.codec)

    @property
    def layout(self) -> Layout:
        return Layout.from_dict(self.manifest.layout)

    def load_split(self, name: str, verify: bool = True) -> SplitArrays:
        """Read all shards of a split. Raises: PreparedDataError naming a shard that is missing, whose rows are not
        as many as the manifest says or, when `verify`, whose bytes have changed."""
        entry = self.manifest.splits[name]
        layout = self.layout
        x = np.empty((entry["rows"], *layout.shape), layout.stored_dtype)
        label = np.full(entry["rows"], -1, np.int64)
        ids: list[pa.Array] = []
        row = 0
        for shard in entry["shards"]:
            table = self._read_shard(shard, verify)
            stop = row + table.num_rows
            x[row:stop] = table["x"].combine_chunks().to_numpy_ndarray()
            label[row:stop] = _label_indices(table["label"], layout.labels)
            ids.extend(table["id"].chunks)
            row = stop
        if x.dtype == np.uint16:  # torch has few operations on uint16
            x = x.astype(np.int32)
        tail = torch.tensor(entry["tail_tokens"], dtype=torch.int64)
        return SplitArrays(
            x=torch.from_numpy(x), label=torch.from_numpy(label), ids=pa.chunked_array(ids, pa.string()), tail=tail
        )

    def missing_shards(self) -> list[str]:
        """Names of shards that are not there or are not of the size the manifest says; reads none of them."""
        shards = [shard for entry in self.manifest.splits.values() for shard in entry["shards"]]
        infos = self.store.filesystem.get_file_info([self.store.path(shard["file"]) for shard in shards])
        return [shard["file"] for shard, info in zip(shards, infos, strict=True) if info.size != shard["bytes"]]

    def _read_shard(self, shard: dict[str, Any], verify: bool) -> pa.Table:
        where = self.store.path(shard["file"])
        again = f"delete {self.store.uri} and run 'atelier prepare' again"
        if not self.store.exists(shard["file"]):
            raise PreparedDataError(f"{where}: the shard is missing; {again}")
        data = self.store.read_bytes(shard["file"])
        if verify and hashlib.sha256(data).hexdigest() != shard["sha256"]:
            raise PreparedDataError(f"{where}: the shard was changed, its sha256 is not the manifest's; {again}")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise PreparedDataError(f"{where}: the shard cannot be read ({error}); {again}") from None
        if table.num_rows != shard["rows"]:
            raise PreparedDataError(f"{where}: {table.num_rows:,} rows, the manifest says {shard['rows']:,}; {again}")
        return table


def _label_indices(column: pa.ChunkedArray, labels: tuple[str, ...]) -> np.ndarray:
    """Label strings as indices into `labels`, int64 `[N]`; -1 for none or one that training never saw."""
    if not labels:
        return np.full(len(column), -1, np.int64)
    indices = pc.index_in(column, value_set=pa.array(labels, pa.string()))
    return np.asarray(pc.fill_null(indices, -1).to_numpy(), np.int64)


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


def find_prepared(store: Store, key: str) -> Prepared | None:
    """The prepared set `key` in the storage, or None when there is none that is complete."""
    folder = store.child(FOLDER, key)
    if not folder.exists(MANIFEST):
        return None
    return Prepared(folder, Manifest.from_dict(folder.read_json(MANIFEST)))


def open_prepared(store: Store, key: str) -> Prepared:
    """The prepared set `key` in the storage. Raises: PreparedDataError when it is not there."""
    found = find_prepared(store, key)
    if found is None:
        raise PreparedDataError(f"{store.path(FOLDER, key)}: there is no prepared set; run 'atelier prepare'")
    return found
