"""Cuts: which rows make which shard, decided before anything is written, so that shards can be made anywhere.

Pure arithmetic on the driver. Shards hold the same examples whatever parts the rows lie in and whoever cuts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.data.layout import Layout
from pipeline.data.selection import Selection


def plan_shards(selection: Selection, split: str, layout: Layout, rows_per_shard: int) -> Iterator[dict[str, Any]]:
    """The items of `stages.CutStage` for one split, in order."""
    chosen = selection.chosen(split)
    if layout.continuous:
        yield from _windows(selection, chosen, split, layout.length, rows_per_shard)
        return
    for number, start in enumerate(range(0, len(chosen), rows_per_shard)):
        yield {
            **_where(selection, chosen[start : start + rows_per_shard]),
            **{"split": split, "number": number, "skip": 0, "first": 0, "windows": -1, "tail": 0},
        }


def _windows(
    selection: Selection, chosen: np.ndarray, split: str, length: int, rows_per_shard: int
) -> Iterator[dict[str, Any]]:
    """The stream of all tokens in whole windows; the last item also brings what is left after them."""
    ends = np.cumsum(selection.rows.numbers["tokens"][chosen])
    if not len(ends) or not ends[-1]:
        return
    total = int(ends[-1])
    windows, tail = divmod(total, length)
    for number, first in enumerate(range(0, max(windows, 1), rows_per_shard)):
        count = min(rows_per_shard, windows - first)
        is_last = first + count == windows
        start, stop = first * length, total if is_last else (first + count) * length
        low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
        before = int(ends[low - 1]) if low else 0
        yield {
            **_where(selection, chosen[low:high]),
            **{"split": split, "number": number, "skip": start - before, "first": first},
            **{"windows": count, "tail": tail if is_last else 0},
        }


def _where(selection: Selection, rows: np.ndarray) -> dict[str, bytes]:
    return {"part": selection.rows.part[rows].tobytes(), "row": selection.rows.row[rows].tobytes()}
