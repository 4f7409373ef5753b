"""Batches: every example once an epoch, in an order that does not depend on the number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches import LaneBatches, ShuffledBatches
from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.prepared import SplitArrays
from pipeline.errors import PreparedDataError

PICTURES = Layout("image", "signal", (1, 1, 1), "uint8", "bernoulli", scale=1.0)
TEXT = Layout("text", "tokens", (4,), "uint8", "categorical", vocabulary=200, continuous=True)
NONE = torch.zeros(0, dtype=torch.int64)


def _rows(count: int) -> SplitArrays:
    x = torch.arange(count).view(-1, 1, 1, 1)
    return SplitArrays(x=x, label=torch.full((count,), -1), ids=[str(i) for i in range(count)], tail=NONE)


def _order(count: int, seed: int) -> Order:
    return Order([count], count, seed)


@given(count=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 3))
def test_every_example_is_seen_once_an_epoch(count: int, batch: int, epochs: int) -> None:
    batches = ShuffledBatches(_rows(count), PICTURES, _order(count, 1), batch)
    number = -(-count * epochs // batch)
    seen = np.concatenate([batches.rows(k) for k in range(number)])[: count * epochs]
    for epoch in seen.reshape(epochs, count):
        assert sorted(epoch.tolist()) == list(range(count))


@given(workers=st.sampled_from([1, 2, 4]), number=st.integers(0, 30))
def test_workers_share_a_global_batch_that_does_not_depend_on_them(workers: int, number: int) -> None:
    order = _order(23, 1)
    whole = ShuffledBatches(_rows(23), PICTURES, order, 8).batch(number).index
    parts = [
        ShuffledBatches(_rows(23), PICTURES, order, 8, rank, workers).batch(number).index for rank in range(workers)
    ]
    assert torch.stack(parts, dim=1).flatten().tolist() == whole.tolist()


def test_any_batch_can_be_had_first() -> None:
    one, two = (ShuffledBatches(_rows(50), PICTURES, _order(50, 2), 7) for _ in range(2))
    in_order = [one.rows(k).tolist() for k in range(30)]
    assert [two.rows(k).tolist() for k in reversed(range(30))] == in_order[::-1]


def test_lanes_follow_on_and_together_read_every_token_once() -> None:
    x, tail = torch.arange(96).view(-1, 4), torch.arange(96, 100)
    arrays = SplitArrays(x=x, label=torch.full((24,), -1), ids=[""] * 24, tail=tail)
    batches = LaneBatches(arrays, TEXT, batch_size=5)
    steps = [batches.batch(number).x for number in range(5)]
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert before[:, -1].tolist() == after[:, 0].tolist()
    seen = torch.cat([step[:, :-1] for step in steps], dim=1)
    assert sorted(seen.flatten().tolist()) == list(range(100))


def test_text_shorter_than_a_window_is_refused() -> None:
    arrays = SplitArrays(x=torch.zeros(0, 4), label=NONE, ids=[], tail=torch.arange(3))
    with pytest.raises(PreparedDataError, match="3 tokens and a window is 4"):
        LaneBatches(arrays, TEXT, batch_size=2)
