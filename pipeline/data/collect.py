"""Collecting: encoded tables, in the order of the corpus, into shards, the manifest's split entries and the report.

Runs on the driver of `prepare` and holds no more than a shard of each split at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.layout import Layout
from pipeline.data.manifest import SPLITS
from pipeline.data.prepared import Records
from pipeline.data.shards import ShardWriter, rows_per_shard
from pipeline.errors import CorpusError
from pipeline.spec import RunSpec
from pipeline.storage import Store

REASONS_KEPT = 100


class WindowPacker:
    """Joins documents into one stream of tokens and cuts it into windows of `length`."""

    def __init__(self, split: str, length: int, dtype: str) -> None:
        self.split, self.length = split, length
        self.windows = 0
        self.tail = np.zeros(0, dtype)
        self._tail_origin = ""

    def add(self, documents: list[bytes], origins: pa.Array) -> tuple[np.ndarray, pa.Array, pa.Array]:
        """The whole windows `[N, length]` that the stream has now, their identifiers, and for each the origin of the
        document in which it begins."""
        dtype = self.tail.dtype
        sizes = np.array([len(document) // dtype.itemsize for document in documents])
        stream = np.concatenate([self.tail, np.frombuffer(b"".join(documents), dtype)])
        begins = np.concatenate([[0], len(self.tail) + np.cumsum(sizes) - sizes])
        names = [self._tail_origin, *origins.to_pylist()]
        count = len(stream) // self.length
        which = np.searchsorted(begins, np.arange(count + 1) * self.length, side="right") - 1
        identifiers = pa.array([f"{self.split}-{self.windows + i:09d}" for i in range(count)], pa.string())
        self.windows += count
        self.tail, self._tail_origin = stream[count * self.length :].copy(), names[which[-1]]
        windows = stream[: count * self.length].reshape(count, self.length)
        return windows, identifiers, pa.array([names[i] for i in which[:-1]], pa.string())


@dataclass
class _Split:
    """One split while it is written."""

    writer: ShardWriter
    packer: WindowPacker | None
    records: int = 0
    characters: int = 0
    utf8_bytes: int = 0


@dataclass
class Collector:
    """Takes encoded tables by `add`; `finish` gives the manifest's `splits` and `report`, and then `records` has
    everything that was read, kept or not."""

    store: Store
    layout: Layout
    spec: RunSpec
    read: int = 0
    kept: int = 0
    quarantined: int = 0
    unknown: int = 0
    reasons: list[dict[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    _hashes: list[np.ndarray] = field(default_factory=list)
    _lengths: list[np.ndarray] = field(default_factory=list)
    _records: list[Records] = field(default_factory=list)

    def __post_init__(self) -> None:
        layout = self.layout
        rows = rows_per_shard(layout, self.spec.data.shard_megabytes)
        self.splits = {
            name: _Split(
                ShardWriter(self.store, name, layout, rows),
                WindowPacker(name, layout.length, layout.stored_dtype) if layout.continuous else None,
            )
            for name in SPLITS
        }

    def add(self, table: pa.Table) -> None:
        """Take the next table of `stages.ENCODED_SCHEMA`. Raises: StorageError."""
        self.read += table.num_rows
        self.note_failures(table)
        self._records.append(Records.of(table["record"].to_pylist(), table["split"].to_pylist()))
        table = table.filter(pc.is_valid(table["x"]))
        self.kept += table.num_rows
        self.unknown += pc.sum(table["unknown"]).as_py() or 0
        self._hashes.append(np.array([int(value, 16) for value in table["id"].to_pylist()], np.uint64))
        self._lengths.append(pc.drop_null(table["length"]).to_numpy())
        for name, split in self.splits.items():
            part = table.filter(pc.equal(table["split"], name)).combine_chunks()
            if part.num_rows:
                self._write(split, part)

    def note_failures(self, table: pa.Table) -> None:
        """Count the rows of `table` that were quarantined or dropped, and why."""
        failed = table.filter(pc.is_valid(table["error"]))
        self.quarantined += failed.num_rows
        room = REASONS_KEPT - len(self.reasons)
        for origin, error in zip(failed["origin"][:room].to_pylist(), failed["error"][:room].to_pylist(), strict=True):
            self.reasons.append({"origin": origin, "reason": error})
        self.dropped.update(pc.drop_null(table["dropped"]).to_pylist())

    def _write(self, split: _Split, part: pa.Table) -> None:
        split.records += part.num_rows
        split.characters += pc.sum(part["characters"]).as_py() or 0
        split.utf8_bytes += pc.sum(part["utf8_bytes"]).as_py() or 0
        examples, origins = part["x"].to_pylist(), _array(part["origin"])
        if split.packer is not None:
            windows, identifiers, origins = split.packer.add(examples, origins)
            split.writer.write(windows, identifiers, origins, pa.nulls(len(windows), pa.string()))
            return
        x = np.frombuffer(b"".join(examples), self.layout.stored_dtype).reshape(-1, *self.layout.shape)
        split.writer.write(x, _array(part["id"]), origins, _array(part["label"]))

    def check_quarantine(self) -> None:
        """Raises: CorpusError when nothing was read, or more than the spec's share of it cannot be decoded."""
        source, allowed = self.spec.data.source, self.spec.data.max_quarantined
        where = getattr(source, "path", getattr(source, "name", ""))
        if self.read == 0:
            raise CorpusError(f"{where}: there are no records in it; set data.source")
        if self.quarantined > allowed * self.read:
            reasons = "".join(f"\n  {item['origin']}: {item['reason']}" for item in self.reasons[:3])
            raise CorpusError(
                f"{where}: {self.quarantined:,} of {self.read:,} records cannot be decoded, and data.max_quarantined "
                f"allows {allowed:.3g} of them; mend or remove them, or raise it:{reasons}"
            )

    def finish(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Write what is left; the split entries and the report. Raises: CorpusError, StorageError."""
        self.check_quarantine()
        for name in dict.fromkeys(("train", self.spec.evaluation.split)):
            self._check_filled(name)
        entries = {name: self._entry(split) for name, split in self.splits.items()}
        hashes, lengths = np.concatenate(self._hashes), np.concatenate(self._lengths)
        report: dict[str, Any] = {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "duplicates": int(len(hashes) - len(np.unique(hashes))),
            "quarantined_count": self.quarantined,
            "quarantined": self.reasons,
            "unknown_characters": self.unknown,
        }
        if len(lengths):
            summary = {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())}
            report["example_lengths"] = summary
        return entries, report

    def records(self) -> Records:
        """Every record that was read, with its side."""
        return Records.joined(self._records)

    def labels(self) -> tuple[str, ...]:
        """The labels of the training split, sorted."""
        return tuple(sorted(self.splits["train"].writer.labels))

    def _check_filled(self, name: str) -> None:
        split = self.splits[name]
        if split.writer.rows:
            return
        tokens = 0 if split.packer is None else len(split.packer.tail)
        if tokens:
            raise CorpusError(
                f"the {name} split has {tokens:,} tokens, fewer than one window of data.codec.length "
                f"{self.layout.length}; shorten it, or bring more text"
            )
        raise CorpusError(
            f"the {name} split is empty: {self.kept:,} records were kept of {self.read:,} read; change data.split "
            f"(now {self.spec.data.split.model_dump()}), data.limit or evaluation.split, or bring more records"
        )

    def _entry(self, split: _Split) -> dict[str, Any]:
        return {
            "shards": split.writer.close(),
            "rows": split.writer.rows,
            "records": split.records,
            "characters": split.characters,
            "utf8_bytes": split.utf8_bytes,
            "tail_tokens": [] if split.packer is None else split.packer.tail.tolist(),
            "labels": dict(sorted(split.writer.labels.items())),
        }


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
