"""Streamed batches and lanes: bit for bit those of a split in memory, from any filesystem, damage named."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.background import Ahead
from pipeline.data.batches import Batches, LaneBatches, ShuffledBatches
from pipeline.data.feed import make_batches
from pipeline.data.lanes import StreamedLanes
from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.prepared import Prepared
from pipeline.data.streaming import StreamedBatches
from pipeline.errors import PreparedDataError
from pipeline.models.base import Batch
from pipeline.spec.training import TrainingSpec
from pipeline.storage import open_store
from tests.data.prepared_sets import PICTURES, TEXT, memory_store, pictures, tokens, write_prepared


def equal(one: Batch, two: Batch) -> bool:
    pairs = [(one.x, two.x), (one.label, two.label), (one.index, two.index)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@settings(max_examples=25)
@given(
    count=st.integers(1, 40),
    shard=st.integers(1, 9),
    group=st.integers(1, 5),
    window=st.integers(1, 50),
    batch=st.integers(1, 17),
    workers=st.sampled_from([1, 2, 3, 4]),
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=8),
)
def test_streamed_examples_are_those_in_memory(
    count: int, shard: int, group: int, window: int, batch: int, workers: int, numbers: list[int]
) -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(count), shard, group)
    arrays, shards = prepared.load_split("train"), prepared.shards("train")
    order = Order([each.rows for each in shards], window, seed=3)
    for rank in range(workers):
        held = ShuffledBatches(arrays, PICTURES, order, batch, rank, workers)
        streamed = StreamedBatches(shards, PICTURES, order, batch, rank, workers)
        # Any number first, then on from there, as a resumed run goes.
        for number in [*numbers, *range(numbers[-1], numbers[-1] + 6)]:
            assert equal(streamed.batch(number), held.batch(number))
        streamed.close()


@given(
    count=st.integers(1, 30),
    tail=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    shard=st.integers(1, 9),
    group=st.integers(1, 5),
    batch=st.integers(1, 9),
    workers=st.sampled_from([1, 2, 3]),
    numbers=st.lists(st.integers(0, 100), min_size=1, max_size=8),
)
def test_streamed_lanes_are_those_in_memory(
    count: int, tail: list[int], shard: int, group: int, batch: int, workers: int, numbers: list[int]
) -> None:
    prepared = write_prepared(memory_store(), TEXT, tokens(count), shard, group, tail)
    arrays, shards = prepared.load_split("train"), prepared.shards("train")
    for rank in range(workers):
        held = LaneBatches(arrays, TEXT, batch, rank, workers)
        streamed = StreamedLanes(shards, tail, TEXT, batch, rank, workers)
        for number in [*numbers, *range(numbers[-1], numbers[-1] + count + 2)]:
            assert equal(streamed.batch(number), held.batch(number))
        streamed.close()


def streamed_pictures(prepared: Prepared) -> Batches:
    training = TrainingSpec(batch_size=4, load="stream", shuffle_window=8)
    return make_batches(prepared, "train", training, seed=0)


def streamed_text(prepared: Prepared) -> Batches:
    return make_batches(prepared, "train", TrainingSpec(batch_size=2, load="stream"), seed=0)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "rows":
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
        path.write_bytes(path.read_bytes().ljust(len(data), b"\0"))
    else:
        # A bit of the examples themselves; the footer is whole.
        data[pq.read_metadata(path).row_group(0).column(3).data_page_offset + 40] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "cut", "rows", "bit"])
@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_a_damaged_shard_is_named_in_the_thread_that_trains(how: str, kind: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    if kind == "pictures":
        prepared, make = write_prepared(store, PICTURES, pictures(40), 8), streamed_pictures
    else:
        prepared, make = write_prepared(store, TEXT, tokens(40), 8), streamed_text
    damage(prepared.store.local_path("train-00003.parquet"), how)
    batches = make(prepared)
    with pytest.raises(PreparedDataError, match=r"train-00003\.parquet: .*'atelier prepare'"):
        for number in range(12):
            batches.batch(number)
    batches.close()


@pytest.mark.parametrize(
    ("layout", "make"),
    [(PICTURES, streamed_pictures), (TEXT, streamed_text)],
)
def test_close_ends_the_threads_and_leaves_no_file_open(
    layout: Layout, make: Callable[[Prepared], Batches], tmp_path: Path
) -> None:
    x = tokens(40) if layout.continuous else pictures(40)
    prepared = write_prepared(open_store(str(tmp_path)), layout, x, 8)
    batches = make(prepared)
    for number in range(20):
        batches.batch(number)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("atelier-batches")]
    held = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    assert not [path for path in held if path.endswith(".parquet")]


def _is_open(number: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{number}")


def test_no_more_is_held_than_two_windows() -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(120), 10)
    order = Order([10] * 12, 20, seed=0)
    batches = StreamedBatches(prepared.shards("train"), PICTURES, order, 7)
    loaded: list[object] = []
    load = batches._ahead.load
    batches._ahead.load = lambda window: loaded.append(window) or load(window)  # type: ignore[func-returns-value]
    for number in range(60):
        batches.batch(number)
        assert len(batches._ahead) <= 2
    for future in batches._ahead._futures.values():  # the last one may still be on its way
        future.result()
    assert len(loaded) == len(set(loaded)) == 60 * 7 // 20 + 1
    batches.close()


def test_a_rank_holds_its_own_rows_alone() -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(40), 10)
    order = Order([10] * 4, 40, seed=0)
    batches = StreamedBatches(prepared.shards("train"), PICTURES, order, 8, rank=1, world_size=4)
    batches.batch(0)
    assert len(batches._ahead.get(order.window_at(0)).x) == 10
    batches.close()


def test_lanes_hold_the_row_groups_around_their_places() -> None:
    prepared = write_prepared(memory_store(), TEXT, tokens(4000), 1000, 250)
    lanes = StreamedLanes(prepared.shards("train"), [], TEXT, batch_size=2)
    for number in range(0, 4000, 25):
        lanes.batch(number)
        assert len(lanes._ahead) <= 2 * 3
    lanes.close()


@pytest.mark.parametrize(
    ("load", "megabytes", "kind"),
    [
        ("memory", 1, ShuffledBatches),
        ("stream", 1000, StreamedBatches),
        ("auto", 2, ShuffledBatches),
        ("auto", 1, StreamedBatches),
    ],
)
def test_a_split_is_streamed_when_it_is_larger_than_the_spec_allows(load: str, megabytes: int, kind: type) -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(2**20 // 6 + 1), 10**6)
    training = TrainingSpec.model_validate({"load": load, "memory_megabytes": megabytes})
    batches = make_batches(prepared, "train", training, seed=0)
    assert type(batches) is kind
    batches.close()


def test_an_empty_split_is_refused() -> None:
    prepared = write_prepared(memory_store(), PICTURES, pictures(0))
    with pytest.raises(PreparedDataError, match="train split is empty"):
        make_batches(prepared, "train", TrainingSpec(), seed=0)


def test_what_is_not_wanted_is_let_go_and_may_still_be_had() -> None:
    made: list[int] = []
    ahead: Ahead[int, int] = Ahead(lambda key: made.append(key) or key * key, threads=1)  # type: ignore[func-returns-value]
    ahead.want([1, 2])
    assert ahead.get(2) == 4
    ahead.want([2, 3])
    assert (len(ahead), ahead.get(1)) == (2, 1)
    ahead.close()
    assert sorted(made) == [1, 1, 2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.25, 0.0])
@pytest.mark.parametrize("layout", [PICTURES, TEXT])
def test_batches_on_a_gpu_are_those_on_the_host(share: float, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.batches.DEVICE_SHARE", share)  # 0: the split stays in the host's memory
    x = tokens(40) if layout.continuous else pictures(40)
    prepared = write_prepared(memory_store(), layout, x, 9, 4)
    feeds = [
        make_batches(prepared, "train", TrainingSpec.model_validate({"batch_size": 8, "load": load}), 0, 1, 2, device)
        for load in ("memory", "stream")
        for device in ("cpu", "cuda")
    ]
    for number in range(20):
        first, *others = (feed.batch(number) for feed in feeds)
        for other in others:
            torch.testing.assert_close(other.x.cpu(), first.x)
            assert other.label.tolist() == first.label.tolist() and other.index.tolist() == first.index.tolist()
    for feed in feeds:
        feed.close()


@pytest.mark.parametrize("load", ["memory", "stream"])
def test_workers_that_become_one_and_then_four_see_every_record_once_an_epoch(load: str, tmp_path: Path) -> None:
    count, batch_size = 44, 8
    store = open_store(str(tmp_path))
    prepared = write_prepared(store, PICTURES, pictures(count), 9, 9)
    training = TrainingSpec(batch_size=batch_size, load=load, shuffle_window=16)
    ids = prepared.load_split("train").ids
    seen: list[str] = []
    # Each time in the middle of an epoch: 44 examples are five batches and a half.
    for workers, first, last in ((2, 0, 4), (1, 4, 9), (4, 9, 22)):
        ranks = [make_batches(prepared, "train", training, 3, rank, workers) for rank in range(workers)]
        for number in range(first, last):
            parts = [each.batch(number) for each in ranks]
            for place in range(batch_size):
                seen.append(str(ids[int(parts[place % workers].index[place // workers])]))
        for each in ranks:
            each.close()
    assert len(seen) == 4 * count and len(set(seen)) == count
    for epoch in range(4):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == sorted(map(str, ids))
