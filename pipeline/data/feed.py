"""Which batches a training reads: from the split in memory, or streamed from its shards; the same batches either way.

Runs in every training worker, when its session begins.
"""

from __future__ import annotations

import torch

from pipeline.data.batches import LaneBatches, ShuffledBatches, SplitBatches
from pipeline.data.lanes import StreamedLanes
from pipeline.data.layout import Layout
from pipeline.data.order import Order, window_rows
from pipeline.data.prepared import Prepared
from pipeline.data.streaming import StreamedBatches
from pipeline.errors import PreparedDataError
from pipeline.spec import TrainingSpec


def make_batches(
    prepared: Prepared,
    split: str,
    training: TrainingSpec,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> SplitBatches:
    """Lanes for continuous text, shuffled examples for everything else, in memory or streamed as `training.load` says.

    Shards are not hashed here, once a worker; whoever launches the training has called `Prepared.verify`. Raises:
    PreparedDataError when the split is empty or a shard is missing or damaged.
    """
    layout, entry = prepared.layout, prepared.manifest.splits[split]
    batch_size = training.batch_size
    streamed = training.load == "stream" or (
        training.load == "auto" and entry["rows"] > rows_in_memory(layout, training.memory_megabytes)
    )
    if layout.continuous:
        if streamed:
            shards, tail = prepared.shards(split), entry["tail_tokens"]
            return StreamedLanes(shards, tail, layout, batch_size, rank, world_size, device)
        return LaneBatches(prepared.load_split(split, verify=False), layout, batch_size, rank, world_size, device)
    if entry["rows"] == 0:
        raise PreparedDataError(f"the {split} split is empty; change the shares in data.split, or bring more records")
    rows = [shard["rows"] for shard in entry["shards"]]
    order = Order(rows, window_rows(layout, training.shuffle_window), seed)
    if streamed:
        return StreamedBatches(prepared.shards(split), layout, order, batch_size, rank, world_size, device)
    return ShuffledBatches(
        prepared.load_split(split, verify=False), layout, order, batch_size, rank, world_size, device
    )


def rows_in_memory(layout: Layout, megabytes: int) -> int:
    """How many examples `megabytes` (2^20 bytes) of memory hold; at least one."""
    return max(1, megabytes * 2**20 // (layout.dimensions * layout.loaded_dtype.itemsize))
