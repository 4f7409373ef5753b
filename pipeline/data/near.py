"""Near duplicates over all rows: the signatures side by side in one file, searched band by band.

The driver gathers the signatures part by part; the bands are independent of each other, so that Ray's workers take one
each. A worker reads the file a block at a time, so that what it holds is a key a row and what it compares.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.duplicates import (
    DEFAULT_SIMILARITY,
    SIGNATURE_BYTES,
    band_keys,
    num_bands,
    pairs_in_buckets,
    similar,
)
from pipeline.data.layout import Modality
from pipeline.data.parts import Part, joined
from pipeline.data.selection import Rows
from pipeline.storage import Store

FILE = "signatures.bin"
ROWS_AT_ONCE = 65_536
KEYS_AT_ONCE = 2**18
PAIRS_AT_ONCE = 2**17


@dataclass(frozen=True)
class SignatureFile:
    """`count` signatures of `width` bytes on the local disk, in rows, then a byte a row: whether it has one."""

    path: Path
    count: int
    width: int

    def __len__(self) -> int:
        return self.count

    @property
    def signed(self) -> np.ndarray:
        """Which rows have a signature, bool `[N]`."""
        return np.fromfile(self.path, bool, self.count, offset=self.count * self.width)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, uint8 `[<= ROWS_AT_ONCE, width]` each."""
        with open(self.path, "rb") as file:
            for start in range(0, self.count, ROWS_AT_ONCE):
                yield self._read(file, start)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The signatures of ascending rows int64 `[n]`, uint8 `[n, width]`."""
        taken = np.empty((len(rows), self.width), np.uint8)
        with open(self.path, "rb") as file:
            for start in range(0, self.count, ROWS_AT_ONCE):
                first, last = np.searchsorted(rows, [start, start + ROWS_AT_ONCE])
                if last > first:
                    taken[first:last] = self._read(file, start)[rows[first:last] - start]
        return taken

    def _read(self, file: BinaryIO, start: int) -> np.ndarray:
        count = min(ROWS_AT_ONCE, self.count - start)
        file.seek(start * self.width)
        block: np.ndarray = np.frombuffer(file.read(count * self.width), np.uint8)
        return block.reshape(count, self.width)


def save_signatures(store: Store, parts: Sequence[Part], rows: Rows, chosen: np.ndarray, modality: Modality) -> None:
    """Put the signatures of the rows `chosen` (int64 `[n]`) where all workers read them; holds those of a part."""
    width = SIGNATURE_BYTES[modality]
    with tempfile.TemporaryDirectory() as folder:
        path = store.local_path(FILE) if store.is_local else Path(folder, FILE)
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(len(chosen) * (width + 1))
            part, row = rows.part[chosen], rows.row[chosen]
            for place in np.unique(part):
                mine = np.flatnonzero(part == place)
                _write(file, len(chosen), mine, *_signatures(parts[place], row[mine], width))
        if not store.is_local:
            with open(path, "rb") as source, store.open_output(FILE) as sink:
                shutil.copyfileobj(source, sink, 2**23)


def _signatures(part: Part, row: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows of a part: the signatures, uint8 `[n, width]` (zeros where there is none), and who has one, bool
    `[n]`."""
    column = part.column_table(["signature"])["signature"].take(pa.array(row))
    signed = pc.fill_null(pc.greater(pc.binary_length(column), 0), False).to_numpy()
    table = np.zeros((len(row), width), np.uint8)
    table[signed] = joined(column.cast(pa.large_binary())).reshape(-1, width)
    return table, signed


def _write(file: BinaryIO, count: int, mine: np.ndarray, table: np.ndarray, signed: np.ndarray) -> None:
    """Write rows to their ascending places `mine` of `count`, each run of neighbours at once."""
    width = table.shape[1]
    edges = np.flatnonzero(np.diff(mine, prepend=-2, append=-2) != 1)
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        file.seek(int(mine[first]) * width)
        file.write(table[first:last].tobytes())
        file.seek(count * width + int(mine[first]))
        file.write(signed[first:last].tobytes())


@contextmanager
def opened_signatures(store: Store, count: int, modality: Modality) -> Iterator[SignatureFile]:
    """What `save_signatures` put of `count` rows; from an object store it is fetched to the local disk."""
    width = SIGNATURE_BYTES[modality]
    if store.is_local:
        yield SignatureFile(store.local_path(FILE), count, width)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        with store.open_input(FILE) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, 2**23)
        yield SignatureFile(path, count, width)


@dataclass
class PairStage:
    """Bands → pairs of rows that share the band and are similar."""

    store: Store
    count: int
    modality: Modality
    similarity: float | None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`band` → `pairs` (int64 `[P, 2]` as bytes), as places among the signatures."""
        with opened_signatures(self.store, self.count, self.modality) as signatures:
            pairs = near_pairs_of(signatures, item["band"], self.modality, self.similarity)
        return {"pairs": pairs.tobytes()}


def near_pairs_of(
    signatures: SignatureFile, band: int, modality: Modality, similarity: float | None = None
) -> np.ndarray:
    """What `duplicates.near_pairs` finds in the whole table, int64 `[P, 2]` in some order: the buckets of a band do not
    know of each other, so that they are looked at a share at a time."""
    signed = signatures.signed
    keys = np.concatenate([band_keys(block, band, modality) for block in signatures.blocks()])
    share = keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    shares = -(-len(keys) // KEYS_AT_ONCE)
    share %= np.uint64(shares)
    least = DEFAULT_SIMILARITY[modality] if similarity is None else similarity
    found = [np.zeros((0, 2), np.int64)]
    for number in range(shares):
        rows = np.flatnonzero((share == number) & signed)
        pairs = rows[pairs_in_buckets(keys[rows])]
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            used, places = np.unique(part, return_inverse=True)
            alike = similar(places.reshape(part.shape), signatures.take(used), modality)
            found.append(part[alike >= least])
    return np.concatenate(found)


def bands(modality: Modality) -> list[dict[str, Any]]:
    return [{"band": band} for band in range(num_bands(modality))]
