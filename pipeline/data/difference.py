"""What is different between two prepared sets: in their manifests, and record by record.

What `atelier prepare CONF --diff KEY` prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.data.manifest import SPLITS
from pipeline.data.prepared import Prepared, Records

NOT_TOLD = ("key", "format_version", "sha256", "corpus.fingerprint", "corpus.records.sha256")


def difference(before: Prepared, after: Prepared) -> list[str]:
    """A line for each thing that `after` has otherwise than `before`; none when they hold the same."""
    one, other = before.manifest.as_dict(), after.manifest.as_dict()
    lines = [
        f"{path}: {_short(was)} → {_short(now)}"
        for path, was, now in _differences(one, other, "")
        if path not in NOT_TOLD and not path.startswith("report.examples")
    ]
    return [*_records(before.load_records(), after.load_records()), *lines]


def _records(before: Records | None, after: Records | None) -> Iterator[str]:
    """How many records came, went, or changed side."""
    if before is None or after is None:
        return
    came = len(np.setdiff1d(after.record, before.record))
    went = len(np.setdiff1d(before.record, after.record))
    if came or went:
        yield f"records: {came:,} came, {went:,} went"
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            for left, right in ((one, other), (other, one)):
                moved = len(np.intersect1d(before.on(left), after.on(right)))
                if moved:
                    yield f"records that were {left} and are {right}: {moved:,}"


def _differences(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two trees differ; of shards only their number and size."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        if path.endswith(".shards"):
            one, other = (f"{len(shards)} shards, {_bytes(shards):,} bytes" for shards in (one or [], other or []))
        yield path, one, other


def _bytes(shards: list[dict[str, Any]]) -> int:
    return sum(shard["bytes"] for shard in shards)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}…"
