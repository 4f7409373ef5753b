"""Measures of novelty against closed forms, brute force and simulations of models that copy and that do not."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pipeline.evaluation.intervals import binomial
from pipeline.evaluation.neighbours import nearest
from pipeline.evaluation.novelty import (
    DEFINITIONS_OF_NOVELTY,
    SIGNAL,
    authenticity,
    closest_pairs,
    likeness,
    measure_novelty,
    nearness,
    share_of,
    singled_out,
)


def normal(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Five training points on a line, and by hand: nearest rows 0, 2, 4 at distances 0.5, 0.1, 4; the own neighbours of
# those rows are at 1, 2 and 5.
LINE = torch.tensor([[0.0], [1.0], [3.0], [10.0], [15.0]], dtype=torch.float64)
ON_LINE = torch.tensor([[-0.5], [3.1], [19.0]], dtype=torch.float64)


def test_authenticity_of_an_example_made_by_hand():
    assert authenticity(nearest(ON_LINE, LINE), LINE).value == 0.0
    assert authenticity(nearest(ON_LINE + torch.tensor([[-1.0], [0.0], [1.5]]), LINE), LINE).value == pytest.approx(
        2 / 3
    )


def test_likeness_and_pairs_of_an_example_made_by_hand():
    found = nearest(ON_LINE, LINE, 3)
    expected = [0.5 / ((0.5 + 1.5 + 3.5) / 3), 0.1 / ((0.1 + 2.1 + 3.1) / 3), 4 / ((4 + 9 + 16) / 3)]
    assert likeness(found).tolist() == pytest.approx(expected)
    held_out = nearest(torch.tensor([[2.9], [12.0]], dtype=torch.float64), LINE, 3)
    rows = torch.tensor([7, 8, 9, 20, 30])
    pairs = closest_pairs(found, held_out, rows)
    assert [(pair.generated, pair.train_row) for pair in pairs] == [(1, 9), (0, 7), (2, 30)]
    assert pairs[0].distance == pytest.approx(0.1)
    assert [pair.held_out_share for pair in pairs] == [0.0, 0.5, 0.5]


def test_pairs_show_each_training_example_once():
    found = nearest(torch.tensor([[0.0], [0.01], [3.0]], dtype=torch.float64), LINE, 3)
    pairs = closest_pairs(found, found, torch.arange(5))
    assert [(pair.generated, pair.train_row) for pair in pairs] == [(0, 0), (2, 2)]


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 1 / 3), (2, 1 - 6 * math.pi / (8 * math.pi + 3 * math.sqrt(3))), (3, 1 - 16 / 27)]
)
def test_authenticity_of_unseen_examples_is_the_share_that_are_not_their_neighbours_neighbour(size, expected):
    """Points and their nearest are each other's nearest with probability 2/3, 0.6215 and 16/27 (Pickard 1982)."""
    generator = torch.Generator().manual_seed(size)
    train, fresh = torch.rand(2, 4000, size, dtype=torch.float64, generator=generator)
    assert authenticity(nearest(fresh, train), train).value == pytest.approx(expected, abs=0.025)


def test_authenticity_is_half_or_more_of_unseen_examples_in_many_dimensions_and_zero_of_copies():
    train, fresh = normal(1000, 64, 0), normal(1000, 64, 1)
    assert authenticity(nearest(fresh, train), train).value > 0.5
    copies = train[:500] + 0.05 * normal(500, 64, 2)
    assert authenticity(nearest(copies, train), train).value == 0.0


def test_shares_of_independent_draws_are_those_of_the_held_out_quantiles():
    ours, theirs, train = normal(4000, 8, 0), normal(4000, 8, 1), normal(2000, 8, 2)
    found = nearness(nearest(ours, train), nearest(theirs, train))
    assert found.ratio_interval[0] < 1 < found.ratio_interval[1]
    assert found.closer_than["closer_than_1pct"].value == pytest.approx(0.01, abs=0.006)
    assert found.closer_than["closer_than_5pct"].value == pytest.approx(0.05, abs=0.015)
    share = singled_out(nearest(ours, train, 50), nearest(theirs, train, 50))
    assert share.value == pytest.approx(0.01, abs=0.006)


def test_quantiles_and_ratio_are_those_of_the_distances():
    train = torch.zeros(1, 2, dtype=torch.float64)
    ours = torch.linspace(1, 3, 101, dtype=torch.float64).unsqueeze(1) * torch.tensor([[0.6, 0.8]])
    theirs = 2 * ours
    found = nearness(nearest(ours, train), nearest(theirs, train))
    assert found.ratio == pytest.approx(0.5)
    assert found.generated == pytest.approx((1.02, 1.1, 1.5, 2.0, 2.5, 2.9))
    assert found.closer_than["closer_than_5pct"].value == pytest.approx(60 / 101)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_copies_with_noise_are_singled_out_however_small_their_share(share):
    train, held_out = normal(2000, 32, 0), normal(1000, 32, 1)
    generated = normal(1000, 32, 2)
    copied = int(share * len(generated))
    generated[:copied] = train[:copied] + 0.1 * normal(copied, 32, 3)
    found = measure_novelty(generated, held_out, train)
    assert found.singled_out.value >= share
    assert found.singled_out.interval[0] > 0.05
    assert {pair.generated for pair in found.pairs} <= set(range(copied))
    assert all(pair.generated == pair.train_row and pair.held_out_share == 0 for pair in found.pairs)


def test_examples_that_shrink_are_nearer_to_all_but_single_none_out():
    """Blur takes away contrast, which brings an example nearer to every other: no copy, though distances fall."""
    train, held_out = normal(2000, 64, 0), normal(1000, 64, 1)
    found = measure_novelty(0.3 * normal(1000, 64, 2), held_out, train)
    assert found.nearness.ratio < 0.9
    assert found.authenticity.value < 0.1
    assert found.singled_out.value < 0.02


def test_ten_outputs_drawn_often_say_no_more_than_ten():
    train, held_out = normal(500, 4, 0), normal(500, 4, 1)
    found = measure_novelty(normal(10, 4, 2).repeat(50, 1), held_out, train)
    assert found.different <= 10
    assert found.singled_out.interval[1] > 0.25


def test_every_score_has_a_definition_and_an_interval_around_it():
    found = measure_novelty(normal(200, 4, 0), normal(200, 4, 1), normal(200, 4, 2))
    values = found.values() | found.values(SIGNAL)
    assert values.keys() == DEFINITIONS_OF_NOVELTY.keys()
    for value, (low, high) in values.values():
        assert low <= value <= high


def test_the_same_seed_gives_the_same_and_order_of_training_examples_is_only_a_name():
    ours, theirs, train = normal(150, 4, 0), normal(150, 4, 1), normal(150, 4, 2)
    first = measure_novelty(ours, theirs, train, seed=3)
    assert measure_novelty(ours, theirs, train, seed=3) == first
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    shuffled = measure_novelty(ours, theirs, train[order], train_rows=order, seed=3)
    assert shuffled.singled_out == first.singled_out
    assert [pair.train_row for pair in shuffled.pairs] == [pair.train_row for pair in first.pairs]


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (17, 400)])
def test_binomial_interval_is_that_of_clopper_and_pearson(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="exact")
    assert binomial(hits, total) == pytest.approx((expected.low, expected.high))


def test_examples_of_one_group_count_once_in_the_interval():
    hits = torch.tensor([True, False]).repeat_interleave(50)
    groups = torch.arange(100) // 10
    assert share_of(hits, groups).interval == pytest.approx(binomial(5, 10))
    assert share_of(hits).interval == pytest.approx(binomial(50, 100))
