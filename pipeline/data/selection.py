"""Selection: which rows of the parts are kept, on which side, in which order; what a prepared set will hold.

Runs on the driver over small columns only (about fifty bytes a row); near-duplicate pairs come from outside, found
by Ray's workers. Everything is a function of the corpus's content, not of the parts that it was read in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from pipeline.data.cleaning import OptOut
from pipeline.data.duplicates import cluster
from pipeline.data.manifest import SPLITS
from pipeline.data.parts import Part
from pipeline.data.splits import Belonging, Leakage, assign
from pipeline.spec import DataSpec

NO_SIDE = len(SPLITS)
PLACES = ("file", "index", "piece")
NUMBERS = ("tokens", "characters", "utf8_bytes", "unknown", "length", "width", "height")
_COLUMNS: dict[str, type] = {
    **{"part": np.int32, "row": np.int32, "record": np.uint64, "content": np.uint64, "group": np.uint64},
    **{"given": np.int8, "error": np.bool_, "dropped": np.bool_},
}


@dataclass
class Rows:
    """All rows of the corpus in its order, N of them, as columns.

    `part`, `row`: where each is; `record`, `content`, `group`: uint64; `given` int8, a place in SPLITS or -1;
    `failed` and `dropped` bool: quarantined, or dropped while reading; `numbers`: NUMBERS, signed integers `[N]` of any
    width, which encoding fills in where the codec had to be fitted first.
    """

    part: np.ndarray
    row: np.ndarray
    piece: np.ndarray
    record: np.ndarray
    content: np.ndarray
    group: np.ndarray
    given: np.ndarray
    failed: np.ndarray
    dropped: np.ndarray
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.part)

    @property
    def alive(self) -> np.ndarray:
        return ~(self.failed | self.dropped)

    @property
    def first_pieces(self) -> np.ndarray:
        """One row of each record."""
        return self.piece == 0


def load_rows(parts: Sequence[Part], wanted: Sequence[np.ndarray]) -> Rows:
    """The rows of `parts` in the corpus's order; `wanted[p]` int64 says for each file of part p its rank among the
    corpus's files, or -1 where the part's rows of it are not wanted.

    A column at a time is brought into the order, in the smallest type that holds it.
    """
    mine, keys = [], []
    for part, ranks in zip(parts, wanted, strict=True):
        table = part.column_table(PLACES)
        rank = ranks[table["file"].to_numpy()]
        mine.append(np.flatnonzero(rank >= 0).astype(np.int32))
        keys.append([rank[mine[-1]], *(table[name].to_numpy()[mine[-1]] for name in PLACES[1:])])
    file, index, piece = (_narrowed(np.concatenate(values)) for values in zip(*keys, strict=True))
    order = np.lexsort((piece, index, file)).astype(np.int32)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    columns = {name: np.zeros(len(order), np.int8) for name in NUMBERS}
    columns |= {name: np.zeros(len(order), dtype) for name, dtype in _COLUMNS.items()}
    start = 0
    for number, (part, rows) in enumerate(zip(parts, mine, strict=True)):
        where = place[start : start + len(rows)]
        start += len(rows)
        columns["part"][where], columns["row"][where] = number, rows
        table = part.column_table([*(name for name in _COLUMNS if name not in ("part", "row")), *NUMBERS])
        for name in ("record", "content", "group", "given"):
            columns[name][where] = pc.fill_null(table[name], 0).to_numpy()[rows]
        for name in ("error", "dropped"):
            columns[name][where] = pc.is_valid(table[name]).to_numpy()[rows]
        for name in NUMBERS:
            put_numbers(columns, name, where, pc.fill_null(table[name], 0).to_numpy()[rows])
    return Rows(
        **{name: columns[name] for name in ("part", "row", "record", "content", "group", "given")},
        piece=piece[order],
        failed=columns["error"],
        dropped=columns["dropped"],
        numbers={name: columns[name] for name in NUMBERS},
    )


def put_numbers(columns: dict[str, np.ndarray], name: str, where: np.ndarray, values: np.ndarray) -> None:
    """Put signed integers into the places `where` of a column, which becomes as wide as they need."""
    kind = np.promote_types(columns[name].dtype, _narrowed(values).dtype)
    columns[name] = columns[name].astype(kind, copy=False)
    columns[name][where] = values


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Integers as the smallest signed type that holds them."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    kind = np.promote_types(np.min_scalar_type(min(least, -1)), np.min_scalar_type(-most - 1))
    return values.astype(kind, copy=False)


def stale_parts(parts: Sequence[Part], opt_out: OptOut) -> list[Part]:
    """Parts that hold a record which has opted out since, or lack one that is no longer on the list."""
    stale = []
    for part in parts:
        dropped = part.column_table(["dropped"])["dropped"]
        out = pc.fill_null(pc.equal(dropped, "opt-out"), False).to_numpy()
        if not opt_out and not out.any():
            continue
        table = part.column_table(["record", "bytes_id", "content", "origin"])
        listed = [
            any(opt_out.has(f"{value:016x}", "", origin) for value in (record, file, content) if value is not None)
            for record, file, content, origin in zip(
                *(table[name].to_pylist() for name in table.column_names), strict=True
            )
        ]
        if (np.array(listed, bool) != out).any():
            stale.append(part)
    return stale


@dataclass
class Selection:
    """What is kept: `side` uint8 `[N]` (a place in SPLITS, or NO_SIDE), `cluster` int64 `[N]` (the smallest row of each
    row's cluster of duplicates), and why the others are not: `exact`, `near`, `leaked` bool `[N]`."""

    rows: Rows
    side: np.ndarray
    cluster: np.ndarray
    exact: np.ndarray
    near: np.ndarray
    leaked: np.ndarray
    leakage: Leakage
    pairs: np.ndarray
    notes: tuple[str, ...]

    def chosen(self, split: str) -> np.ndarray:
        """The rows of a split, int64, in the corpus's order."""
        return np.flatnonzero(self.side == SPLITS.index(split))


def select(rows: Rows, pairs: np.ndarray, data: DataSpec, origin_of: Callable[[int], str]) -> Selection:
    """Decide on every row. `pairs` int64 `[P, 2]`: near duplicates among the rows; `origin_of` names the n-th row that
    is alive.

    Raises: CorpusError when a given split is parted by duplicates and `data.split.leakage` is `refuse`.
    """
    alive = rows.alive
    same = _same_content(rows, alive)
    later = np.flatnonzero(same != np.arange(len(rows)))
    clusters = cluster(len(rows), np.concatenate([pairs, np.stack([same[later], later], axis=1)]))
    leakage, notes = Leakage(), tuple[str, ...]()
    if data.split.kind == "position":
        side = np.where(alive, rows.given, NO_SIDE).astype(np.uint8)
    else:
        belonging = Belonging(rows.record[alive], _renumbered(clusters, alive), rows.group[alive], rows.given[alive])
        split = assign(belonging, data.split, origin_of)
        side = np.full(len(rows), NO_SIDE, np.uint8)
        side[alive] = np.minimum(split.side, NO_SIDE)
        leakage, notes = split.leakage, split.notes
    leaked = alive & (side == NO_SIDE)
    exact = near = np.zeros(len(rows), bool)
    if data.duplicates.exact == "drop":
        exact = _not_first(same, side)
        side[exact] = NO_SIDE
    if data.duplicates.near == "drop":
        near = _not_first(clusters, side)
        side[near] = NO_SIDE
    return Selection(rows, side, clusters, exact, near, leaked, leakage, pairs, notes)


def _same_content(rows: Rows, alive: np.ndarray) -> np.ndarray:
    """For each row the first alive one of the same content, int64 `[N]`; others are alone."""
    first = np.arange(len(rows))
    where = np.flatnonzero(alive)
    _, at, back = np.unique(rows.content[where], return_index=True, return_inverse=True)
    first[where] = where[at][back]
    return first


def _not_first(groups: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Rows that have a side and are not the first of their group on it."""
    later = np.zeros(len(groups), bool)
    where = np.flatnonzero(side != NO_SIDE)
    keys = groups[where] * (NO_SIDE + 1) + side[where]
    _, at = np.unique(keys, return_index=True)
    later[where] = True
    later[where[at]] = False
    return later


def _renumbered(clusters: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Cluster labels of the alive rows, as places among them."""
    place = np.cumsum(alive) - 1
    return place[clusters[alive]]
