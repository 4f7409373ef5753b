"""The order: every row once an epoch, whole shards shuffled in windows, whatever the workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.order import WINDOW_BYTES, Order, window_rows
from pipeline.models.base import make_generator
from tests.data.prepared_sets import PICTURES

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def rows_at(order: Order, start: int, stop: int) -> list[int]:
    return [
        int(row)
        for window, begin, end in order.cut(start, stop)
        for row in order.rows(window)[begin - window.start : end - window.start]
    ]


@given(shards=SHARDS, window=st.integers(1, 40), epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch(shards: list[int], window: int, epoch: int) -> None:
    order, count = Order(shards, window, seed=1), sum(shards)
    assert sorted(rows_at(order, epoch * count, (epoch + 1) * count)) == list(range(count))


@given(shards=SHARDS, window=st.integers(1, 40))
def test_windows_are_whole_neighbouring_shards_and_as_full_as_they_can_be(shards: list[int], window: int) -> None:
    order, count = Order(shards, window, seed=1), sum(shards)
    windows = [order.window_at(0)]
    while windows[-1].stop < count:
        windows.append(order.window_at(windows[-1].stop))
    assert sorted(shard for each in windows for shard in each.shards) == list(range(len(shards)))
    for each in windows:
        rows = {int(row) for row in order.rows(each)}
        assert each.stop - each.start == len(rows) == sum(shards[shard] for shard in each.shards)
        assert rows == {order.first_rows[shard] + place for shard in each.shards for place in range(shards[shard])}
        assert len(rows) <= window or len(each.shards) == 1
    for one, two in zip(windows[:-1], windows[1:], strict=True):
        assert (one.stop - one.start) + min(shards[shard] for shard in two.shards) > window or len(two.shards) > 1


@given(
    shards=SHARDS,
    window=st.integers(1, 40),
    share=st.integers(1, 3),
    changes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4),
    seed=st.integers(0, 5),
)
def test_a_run_that_changes_its_number_of_workers_sees_each_example_once_an_epoch(
    shards: list[int], window: int, share: int, changes: list[int], seed: int
) -> None:
    batch, count = 4 * share, sum(shards)
    ids = [f"id-{row}" for row in range(count)]
    steps = -(-3 * count // batch)
    seen: list[str] = []
    for step in range(steps):
        workers = changes[step * len(changes) // steps]
        # Each worker is a process of its own, which begins where it is told to.
        parts = [rows_at(Order(shards, window, seed), step * batch, (step + 1) * batch) for _ in range(workers)]
        mine = [part[rank::workers] for rank, part in enumerate(parts)]
        seen += [ids[mine[place % workers][place // workers]] for place in range(batch)]
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == sorted(ids)


def test_a_split_of_one_window_is_permuted_as_a_whole() -> None:
    expected = torch.randperm(23, generator=make_generator(7, "order", 2)).tolist()
    assert rows_at(Order([10, 10, 3], 23, seed=7), 46, 69) == expected


def test_epochs_and_seeds_and_windows_differ() -> None:
    order, other = Order([20] * 4, 40, seed=2), Order([20] * 4, 40, seed=3)
    epoch = rows_at(order, 0, 80)
    assert epoch != rows_at(order, 80, 160) and epoch != rows_at(other, 0, 80)
    first, second = order.window_at(0), order.window_at(40)
    assert np.argsort(order.rows(first)).tolist() != np.argsort(order.rows(second)).tolist()


def test_rows_of_neighbouring_shards_are_mixed() -> None:
    order = Order([100] * 10, 300, seed=0)
    for start in range(0, 900, 300):
        shards = [row // 100 for row in rows_at(order, start, start + 60)]
        assert min(shards.count(shard) for shard in set(shards)) > 5 and len(set(shards)) == 3


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (10**9, WINDOW_BYTES // 6)])
def test_a_window_holds_no_more_than_its_bytes(asked: int, given: int) -> None:
    assert window_rows(PICTURES, asked) == given
