"""Near duplicates over all rows: the signatures side by side in one file, searched band by band.

The driver gathers the signatures; the bands are independent of each other, so that Ray's workers take one each. A
worker maps the file into memory (or fetches it from an object store), so that no process holds more than its pages.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.data.duplicates import SIGNATURE_BYTES, near_pairs, num_bands
from pipeline.data.layout import Modality
from pipeline.data.parts import Part
from pipeline.data.selection import Rows
from pipeline.storage import Store

FILE = "signatures.npy"


def gather_signatures(parts: Sequence[Part], rows: Rows, chosen: np.ndarray, modality: Modality) -> np.ndarray:
    """The signatures of the rows `chosen` (int64 `[n]`), uint8 `[n, bytes]`; zeros where a row has none."""
    table = np.zeros((len(chosen), SIGNATURE_BYTES[modality]), np.uint8)
    part, row = rows.part[chosen], rows.row[chosen]
    for place in np.unique(part):
        mine = np.flatnonzero(part == place)
        column = parts[place].column_table(["signature"])["signature"].take(row[mine])
        signed = np.flatnonzero(pc.fill_null(pc.greater(pc.binary_length(column), 0), False).to_numpy())
        joined = b"".join(column.take(signed).to_pylist())
        table[mine[signed]] = np.frombuffer(joined, np.uint8).reshape(len(signed), table.shape[1])
    return table


def save_signatures(store: Store, table: np.ndarray) -> None:
    """Put the signatures where all workers read them."""
    with store.open_output(FILE) as sink:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(table))
        sink.write(header.getvalue())
        for start in range(0, len(table), 65_536):
            sink.write(table[start : start + 65_536].tobytes())


def load_signatures(store: Store) -> np.ndarray:
    if store.is_local:
        mapped: np.ndarray = np.load(store.local_path(FILE), mmap_mode="r")
        return mapped
    fetched: np.ndarray = np.load(io.BytesIO(store.read_bytes(FILE)))
    return fetched


@dataclass
class PairStage:
    """Bands → pairs of rows that share the band and are similar."""

    store: Store
    modality: Modality
    similarity: float | None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`band` → `pairs` (int64 `[P, 2]` as bytes), as places among the signatures."""
        pairs = near_pairs(load_signatures(self.store), item["band"], self.modality, self.similarity)
        return {"pairs": pairs.tobytes()}


def bands(modality: Modality) -> list[dict[str, Any]]:
    return [{"band": band} for band in range(num_bands(modality))]
