"""Splits: shares, stability, and that what belongs together is on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.records import content_id
from pipeline.data.splits import (
    NO_SIDE,
    NOT_GIVEN,
    SIDES,
    TEST,
    TRAIN,
    VALIDATION,
    Belonging,
    assign,
    assign_split,
    split_text,
)
from pipeline.errors import CorpusError
from pipeline.spec import SplitSpec

IDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60)
SHARES = st.floats(0, 0.45)


def ids_of(*names: Any) -> np.ndarray:
    return np.array([int(content_id(str(name)), 16) for name in names], np.uint64)


def labels(values: list[int], first: int = 0) -> np.ndarray:
    return np.array(values, np.int64) + first


def groups(places: list[int], names: Sequence[str]) -> np.ndarray:
    """The hash of each row's group, of which `places` says which of `names` it is, or -1."""
    return np.array([0 if place < 0 else int(content_id(names[place]), 16) for place in places], np.uint64)


@given(st.text(max_size=300), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_text_cut_by_position_is_whole_again_when_joined(text: str, validation: float, test: float) -> None:
    parts = split_text(text, SplitSpec(kind="position", validation=validation, test=test))
    assert parts["train"] + parts["validation"] + parts["test"] == text


def test_nine_tenths_is_the_field_s_split_of_tinyshakespeare() -> None:
    parts = split_text("x" * 1_115_394, SplitSpec(kind="position", validation=0, test=0.1))
    assert {name: len(part) for name, part in parts.items()} == {"train": 1003854, "validation": 0, "test": 111540}


def test_hash_splits_have_their_shares_and_never_move() -> None:
    split = SplitSpec(validation=0.1, test=0.2)
    sides = [assign_split(content_id(str(i)), None, split) for i in range(20_000)]
    assert abs(sides.count("test") / 20_000 - 0.2) < 0.01
    assert abs(sides.count("validation") / 20_000 - 0.1) < 0.01
    wider = SplitSpec(validation=0.1, test=0.3)
    moved = [assign_split(content_id(str(i)), None, wider) for i in range(1000)]
    assert all(after == "test" for before, after in zip(sides, moved, strict=False) if before == "test")


def test_a_given_test_record_stays_test_and_validation_comes_from_training() -> None:
    split = SplitSpec(kind="given", validation=0.5, test=0)
    identifiers = [content_id(str(i)) for i in range(100)]
    assert {assign_split(i, "test", split) for i in identifiers} == {"test"}
    assert {assign_split(i, "train", split) for i in identifiers} == {"train", "validation"}


@given(IDS, SHARES, SHARES)
def test_records_that_belong_with_no_other_are_where_their_own_hash_puts_them(
    ids: list[int], validation: float, test: float
) -> None:
    spec = SplitSpec(validation=validation, test=test)
    split = assign(Belonging(np.array(ids, np.uint64), np.unique(ids, return_inverse=True)[1]), spec)
    assert [SIDES[side] for side in split.side] == [assign_split(f"{value:016x}", None, spec) for value in ids]


@given(IDS, st.data())
def test_clusters_groups_and_pieces_of_a_record_are_never_parted(ids: list[int], data: st.DataObject) -> None:
    few = st.lists(st.integers(0, 5), min_size=len(ids), max_size=len(ids))
    cluster, group = data.draw(few), [value - 1 for value in data.draw(few)]
    repeated = [ids[value % len(ids)] for value in data.draw(few)]
    rows = Belonging(np.array(repeated, np.uint64), labels(cluster), groups(group, list("abcde")))
    side = assign(rows, SplitSpec(validation=0.3, test=0.3)).side
    for label in (repeated, cluster, [value if value >= 0 else -1 - row for row, value in enumerate(group)]):
        assert len({(value, int(each)) for value, each in zip(label, side, strict=True)}) == len(set(label))


@given(IDS, st.randoms())
def test_the_order_of_the_rows_does_not_matter(ids: list[int], random: Any) -> None:
    ids = sorted(set(ids))
    cluster = [value % 7 for value in ids]
    order = random.sample(range(len(ids)), len(ids))
    plain = assign(Belonging(np.array(ids, np.uint64), labels(cluster)), SplitSpec(test=0.4)).side
    values = np.array(ids, np.uint64)[order]
    mixed = assign(Belonging(values, labels(cluster)[order]), SplitSpec(test=0.4)).side
    assert np.array_equal(plain[order], mixed)


def test_a_speaker_keeps_its_side_as_the_corpus_grows() -> None:
    spec = SplitSpec(validation=0.2, test=0.2)
    names = [f"speaker {i}" for i in range(200)]
    small = assign(Belonging(ids_of(*range(400)), None, groups([i % 100 for i in range(400)], names)), spec)
    large = assign(Belonging(ids_of(*range(4000)), None, groups([i % 200 for i in range(4000)], names)), spec)
    assert np.array_equal(small.side[:100], large.side[:100])
    assert abs(large.shares["test"] - 0.2) < 0.1


@pytest.mark.parametrize("speakers", [2, 3, 6, 50])
def test_few_groups_leave_no_side_empty_that_can_have_one(speakers: int) -> None:
    for salt in range(20):
        names = [f"{salt} {i}" for i in range(speakers)]
        rows = Belonging(ids_of(*range(600)), None, groups([i % speakers for i in range(600)], names))
        split = assign(rows, SplitSpec())
        held = {SIDES[side] for side in split.side}
        assert held == ({"train", "test"} if speakers == 2 else {"train", "validation", "test"})
        assert any("validation has 0.0%" in note for note in split.notes) == (speakers == 2)


def test_shares_that_one_giant_cluster_spoils_are_noted() -> None:
    ids = ids_of(*range(1000))
    assert assign(Belonging(ids), SplitSpec()).notes == ()
    giant = np.where(np.arange(1000) < 700, 0, np.arange(1000))
    names = ["one of those whose hash is for the test split"]
    while assign_split(content_id(names[0]), None, SplitSpec()) != "test":
        names[0] += "."
    notes = assign(Belonging(ids, giant, groups(np.where(giant == 0, 0, -1).tolist(), names)), SplitSpec()).notes
    assert any("test has 7" in note and "10.0% were asked for" in note for note in notes)


def test_large_clusters_are_held_out_as_often_as_single_records() -> None:
    cluster = np.arange(20_000) // 10 * 10
    shares = assign(Belonging(ids_of(*range(20_000)), cluster), SplitSpec(validation=0.1, test=0.2)).shares
    assert abs(shares["test"] - 0.2) < 0.03 and abs(shares["validation"] - 0.1) < 0.03


def given_rows() -> Belonging:
    """Rows 0–5: 0 and 3 near-duplicates in training and test, 1 and 4 the same record in validation and test, 2 and 5
    of one speaker in training and test; 6 alone."""
    return Belonging(
        ids=ids_of("a", "b", "c", "d", "b", "e", "f"),
        cluster=labels([0, 1, 2, 0, 4, 5, 6]),
        group=groups([-1, -1, 0, -1, -1, 0, -1], ["ann"]),
        given=np.array([TRAIN, VALIDATION, TRAIN, TEST, TEST, TEST, NOT_GIVEN], np.int8),
    )


def test_what_a_given_split_parts_is_reported_and_stays() -> None:
    split = assign(given_rows(), SplitSpec(kind="given"))
    assert split.side.tolist() == [TRAIN, VALIDATION, TRAIN, TEST, TEST, TEST, TRAIN]
    leakage = split.leakage
    assert leakage.units == 3 and leakage.rows == {"train": 2, "validation": 1, "test": 3}
    assert leakage.near_rows == {"test, train": 1, "test, validation": 1, "validation, train": 0}
    assert leakage.group_rows == {"test, train": 1, "test, validation": 0, "validation, train": 0}
    assert leakage.examples == ((3, 0), (4, 1), (5, 2))
    assert leakage.as_dict()["dropped"] == 0


def test_dropping_leaves_what_leaks_into_a_held_out_side_without_a_side() -> None:
    split = assign(given_rows(), SplitSpec(kind="given", leakage="drop"))
    assert split.side.tolist() == [NO_SIDE, NO_SIDE, NO_SIDE, TEST, TEST, TEST, TRAIN]
    assert split.leakage.dropped == 3


def test_refusing_names_the_count_and_examples_by_their_origin() -> None:
    origins = [f"{row}.txt" for row in range(7)]
    with pytest.raises(CorpusError, match=r"1 test records with train ones nearly the same.*3\.txt and 0\.txt"):
        assign(given_rows(), SplitSpec(kind="given", leakage="refuse"), origins.__getitem__)


def test_dropping_all_training_records_is_refused() -> None:
    rows = Belonging(ids_of(*range(10)), None, groups([0] * 10, ["ann"]), np.array([TRAIN, TEST] * 5, np.int8))
    with pytest.raises(CorpusError, match="all training records, 5 dropped"):
        assign(rows, SplitSpec(kind="given", leakage="drop"))


def test_validation_is_taken_from_training_units_that_do_not_leak() -> None:
    count = 2000
    given = np.where(np.arange(count) % 4 == 0, TEST, TRAIN).astype(np.int8)
    cluster = np.arange(count) // 2 * 2  # a test row and a training row, then two training rows, and so on
    split = assign(Belonging(ids_of(*range(count)), cluster, given=given), SplitSpec(kind="given", validation=0.3))
    assert np.array_equal(split.side == TEST, given == TEST)
    assert set(split.side[1::4]) == {TRAIN}
    assert np.array_equal(split.side[2::4], split.side[3::4])
    assert abs(np.mean(split.side[2::4] == VALIDATION) - 0.3) < 0.08


def test_a_corpus_without_rows_has_a_split_without_rows() -> None:
    for spec in (SplitSpec(), SplitSpec(kind="given")):
        assert len(assign(Belonging(np.zeros(0, np.uint64)), spec).side) == 0
