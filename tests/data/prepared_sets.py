"""Prepared sets written by the real shard writer, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.data.layout import Layout
from pipeline.data.manifest import FOLDER, FORMAT_VERSION, MANIFEST, Manifest
from pipeline.data.prepared import Prepared, Records, open_prepared
from pipeline.data.shards import ShardWriter
from pipeline.storage import Store

PICTURES = Layout("image", "signal", (1, 3, 2), "uint8", "bernoulli", scale=1 / 255, labels=("a", "b"))
TEXT = Layout("text", "tokens", (4,), "uint16", "categorical", vocabulary=60_000, continuous=True)


def memory_store() -> Store:
    """A storage that is no folder of this machine."""
    store = Store(pafs._MockFileSystem(), "bucket", "mock://bucket")
    store.make_dir()
    return store


def write_prepared(
    root: Store,
    layout: Layout,
    x: np.ndarray,
    rows_per_shard: int = 4,
    group_rows: int | None = None,
    tail: Sequence[int] = (),
    blocks: Sequence[int] | None = None,
    codec: dict[str, Any] | None = None,
    records: Records | None = None,
    prompts: Sequence[str | None] | None = None,
) -> Prepared:
    """A set with a training split of `x` `[N, *shape]`; ids count up from 0, labels are a, b, none, a, …"""
    store = root.child(FOLDER, "k")
    store.make_dir()
    writer = ShardWriter(store, "train", layout, rows_per_shard)
    if group_rows is not None:
        writer.group_rows = group_rows
    start = 0
    for block in [len(x)] if blocks is None else blocks:
        names = pa.array([f"{i:016x}" for i in range(start, start + block)], pa.string())
        labels = pa.array([["a", "b", None][i % 3] for i in range(start, start + block)], pa.string())
        asked = None if prompts is None else pa.array(prompts[start : start + block], pa.string())
        writer.write(x[start : start + block], names, names, labels, asked)
        start += block
    entry = {"shards": writer.close(), "rows": writer.rows, "tail_tokens": list(tail)}
    corpus = {} if records is None else {"records": records.save(store)}
    manifest = Manifest(
        FORMAT_VERSION, "k", corpus, {}, {}, {}, codec or {"kind": "none"}, layout.as_dict(), {"train": entry}, {}
    )
    store.write_json(manifest.as_dict(), MANIFEST)
    return open_prepared(root, "k")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *PICTURES.shape), dtype=np.uint8)


def tokens(count: int) -> np.ndarray:
    return np.arange(count * TEXT.length, dtype=np.uint16).reshape(count, TEXT.length)
