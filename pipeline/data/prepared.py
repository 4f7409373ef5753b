"""A prepared set as trainers and evaluators read it: splits, records, integrity.

The driver of `prepare` wrote it; it is never changed after its manifest is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.data.codec import Codec, codec_from_state
from pipeline.data.layout import Layout
from pipeline.data.manifest import FOLDER, MANIFEST, RECORDS, SPLITS, Manifest
from pipeline.data.prompts import PROMPT_DTYPE
from pipeline.data.shard_reader import ShardReader
from pipeline.errors import PreparedDataError
from pipeline.progress import Progress, silent
from pipeline.storage import Store

VERIFY_THREADS = 4
"""Hashing takes a processor each, reading from an object store mostly waits."""


@dataclass
class SplitArrays:
    """A split in memory: `x` `[N, *shape]` of the stored type (uint16 widened to int32), `label` int64 `[N]` (-1
    unknown), `ids` of N strings, `tail`, the tokens `[< length]` after the last whole window (or empty), and `prompt`,
    tokens int16 `[N, P]`, where the set has prompts."""

    x: Tensor
    label: Tensor
    ids: Sequence[Any]
    tail: Tensor
    prompt: Tensor | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])


@dataclass(frozen=True)
class Records:
    """Which records a corpus had: `record` uint64 `[N]`, the first 16 hexadecimal digits of the sha256 of each one's
    content; `side` uint8 `[N]`, its place in `SPLITS`, or `NO_SIDE`. Sorted, each pair once."""

    record: np.ndarray
    side: np.ndarray

    NO_SIDE = len(SPLITS)

    @classmethod
    def of(cls, ids: Sequence[str], splits: Sequence[str | None]) -> Records:
        """From identifiers as `records.content_id` gives them, and the name of each one's split or None."""
        record = np.array([int(value, 16) for value in ids], np.uint64)
        side = np.array([cls.NO_SIDE if name is None else SPLITS.index(name) for name in splits], np.uint8)
        return cls(record, side)._sorted()

    @classmethod
    def of_sides(cls, record: np.ndarray, side: np.ndarray) -> Records:
        """From identifiers uint64 `[N]` and places in SPLITS (or NO_SIDE) uint8 `[N]`, in any order."""
        return cls(record, side)._sorted()

    def _sorted(self) -> Records:
        order = np.lexsort((self.side, self.record))
        record, side = self.record[order], self.side[order]
        first = np.ones(len(record), bool)
        first[1:] = (record[1:] != record[:-1]) | (side[1:] != side[:-1])
        return Records(record[first], side[first])

    def on(self, split: str) -> np.ndarray:
        """The records of a split, uint64 `[any]`."""
        return self.record[self.side == SPLITS.index(split)]

    def save(self, store: Store) -> dict[str, Any]:
        """Write them into a prepared set's folder; the manifest's entry."""
        names = pa.array([*SPLITS, None], pa.string()).take(pa.array(self.side))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"record": self.record, "split": names}), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        store.write_bytes(data, RECORDS)
        count = len(np.unique(self.record))
        return {"file": RECORDS, "count": count, "sha256": hashlib.sha256(data).hexdigest()}


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

    def shards(self, split: str) -> list[ShardReader]:
        """The shards of a split, in the manifest's order."""
        return [ShardReader(self.store, entry, self.layout) for entry in self.manifest.splits[split]["shards"]]

    def load_split(self, name: str, verify: bool = True, max_rows: int | None = None) -> SplitArrays:
        """Read a split into memory, or no more than its first `max_rows` rows: the tail is then left out as well.

        Raises: PreparedDataError naming a shard that is missing, whose bytes or rows are not as many as the manifest
        says or, when `verify`, whose bytes have changed.
        """
        entry, layout = self.manifest.splits[name], self.layout
        cut = max_rows is not None and max_rows < entry["rows"]
        rows = max_rows if cut and max_rows is not None else entry["rows"]
        x = np.empty((rows, *layout.shape), layout.loaded_dtype)
        label = np.empty(rows, np.int64)
        prompt = np.empty((rows, layout.prompt_length), PROMPT_DTYPE) if layout.prompt_length else None
        ids: list[pa.Array] = []
        row = 0
        for shard in self.shards(name):
            if row >= rows:
                break
            for _, examples in shard.groups(with_ids=True, verify=verify):
                taken = slice(0, min(len(examples.x), rows - row))
                stop = row + taken.stop
                x[row:stop], label[row:stop] = examples.x[taken], examples.label[taken]
                if prompt is not None and examples.prompt is not None:
                    prompt[row:stop] = examples.prompt[taken]
                assert examples.ids is not None
                ids.extend(examples.ids[taken].chunks)
                row = stop
        if row != rows:
            raise PreparedDataError(
                f"{self.store.path(MANIFEST)}: the shards of {name} have {row:,} rows, the split {entry['rows']:,}; "
                f"delete {self.store.uri} and run 'atelier prepare' again"
            )
        tail = torch.tensor([] if cut else entry["tail_tokens"], dtype=torch.int64)
        return SplitArrays(
            torch.from_numpy(x),
            torch.from_numpy(label),
            pa.chunked_array(ids, pa.string()),
            tail,
            None if prompt is None else torch.from_numpy(prompt),
        )

    def load_rows(self, name: str, rows: Tensor) -> Tensor:
        """The examples `[N, *shape]` of the rows int64 `[N]`, ascending, of a split; reads only the row groups that
        hold them, one at a time.

        Raises: PreparedDataError naming a shard that is missing, cannot be read, or has not the manifest's rows.
        """
        layout, wanted = self.layout, rows.numpy()
        x = np.empty((len(wanted), *layout.shape), layout.loaded_dtype)
        first = done = 0
        for shard in self.shards(name):
            while done < len(wanted) and wanted[done] < first + shard.rows:
                group = int(wanted[done] - first) // shard.group_rows
                start = first + group * shard.group_rows
                stop = int(np.searchsorted(wanted, start + shard.rows_in(group)))
                x[done:stop] = shard.group(group)[wanted[done:stop] - start]
                done = stop
            first += shard.rows
        assert done == len(wanted), f"row {wanted[done]:,} of {first:,}"
        return torch.from_numpy(x)

    def names(self, name: str, rows: Sequence[int]) -> list[str]:
        """What the records of some rows of a split are called: where they lie in the corpus, and their id. Reads that
        alone, of the row groups that hold them.

        Raises: PreparedDataError naming a shard that is missing, cannot be read, or has not the manifest's rows.
        """
        shards = self.shards(name)
        firsts = [0, *np.cumsum([shard.rows for shard in shards]).tolist()]
        read: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
        names: list[str] = []
        for row in rows:
            place = int(np.searchsorted(firsts, row, side="right")) - 1
            if place >= len(shards):
                names.append("the end of the text")  # tokens behind the last whole window, which have no row
                continue
            group, within = divmod(row - firsts[place], shards[place].group_rows)
            if (place, group) not in read:
                read[place, group] = shards[place].names(group)
            origins, ids = read[place, group]
            names.append(f"{origins[within]} (id {ids[within]})")
        return names

    def verify(self, progress: Progress = silent) -> None:
        """Compare every file of the set with the manifest: size, rows and sha256, a piece at a time in a few threads.

        Raises: PreparedDataError naming the first file that is missing or differs.
        """
        shards = [shard for name in self.manifest.splits for shard in self.shards(name)]
        with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="atelier-verify") as threads:
            checks = [threads.submit(shard.check_bytes) for shard in shards]
            try:
                for done, check in enumerate(checks, start=1):
                    check.result()
                    progress("verify", done, len(shards), "reading the prepared set against its checksums")
                self.load_records()
            finally:
                threads.shutdown(cancel_futures=True)

    def load_records(self) -> Records | None:
        """Which records the set was made from; None for a set from before these were kept.

        Raises: PreparedDataError when the file is missing or was changed.
        """
        entry = self.manifest.corpus.get("records")
        if entry is None:
            return None
        where = self.store.path(entry["file"])
        if not self.store.exists(entry["file"]):
            raise PreparedDataError(f"{where}: the file is missing; delete {self.store.uri} and prepare again")
        data = self.store.read_bytes(entry["file"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise PreparedDataError(
                f"{where}: the file was changed, its sha256 is not the manifest's; delete {self.store.uri} and run "
                "'atelier prepare' again"
            )
        table = pq.read_table(pa.BufferReader(data))
        side = pc.fill_null(pc.index_in(table["split"], value_set=pa.array(SPLITS)), Records.NO_SIDE)
        return Records(table["record"].to_numpy(), side.to_numpy().astype(np.uint8))

    def missing_shards(self) -> list[str]:
        """Names of shards that are not there or are not of the size the manifest says; reads none of them."""
        shards = [shard for entry in self.manifest.splits.values() for shard in entry["shards"]]
        infos = self.store.filesystem.get_file_info([self.store.path(shard["file"]) for shard in shards])
        return [shard["file"] for shard, info in zip(shards, infos, strict=True) if info.size != shard["bytes"]]


def find_prepared(store: Store, key: str) -> Prepared | None:
    """The prepared set `key` in the storage, or None when there is none that is complete."""
    folder = store.child(FOLDER, key)
    if not folder.exists(MANIFEST):
        return None
    return Prepared(folder, Manifest.from_dict(folder.read_json(MANIFEST), folder.path(MANIFEST)))


def open_prepared(store: Store, key: str) -> Prepared:
    """The prepared set `key` in the storage. Raises: PreparedDataError when it is not there."""
    found = find_prepared(store, key)
    if found is None:
        raise PreparedDataError(f"{store.path(FOLDER, key)}: there is no prepared set; run 'atelier prepare'")
    return found
