"""Splits: which side each record is on, so that what belongs together is never parted.

Runs on the driver over all rows at once. What is assigned is a unit: all rows that clusters of near-duplicates, groups
(a speaker, an author) and records (of which one may give several rows) connect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.data.duplicates.clusters import cluster
from pipeline.errors import CorpusError
from pipeline.spec import SplitSpec

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
NO_SIDE = 255
"""The side of a row that is left out."""
NOT_GIVEN = -1
FEW_UNITS = 50
MAX_SHARE_ERROR = 0.5
"""Of a share that was asked for, beyond which the difference is noted."""
EXAMPLES = 10


@dataclass(frozen=True)
class Leakage:
    """What a given split parts although it belongs together, for the data card.

    `units`: clusters, groups and what they connect with rows on several sides; `rows`: of those units by side as it was
    given; `near_rows`: by pair of sides (`test, train`), how many rows of the first have a near-duplicate (or the same
    record) on the second; `group_rows`: the same for rows whose group is on the second; `examples`: pairs of rows that
    are near-duplicates, or else of one group, the one on the side further from training first; `dropped`: rows that the
    policy `drop` left without a side.
    """

    units: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    near_rows: dict[str, int] = field(default_factory=dict)
    group_rows: dict[str, int] = field(default_factory=dict)
    examples: tuple[tuple[int, int], ...] = ()
    dropped: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """`side` of each row, uint8 `[N]` in the order of `SIDES` or `NO_SIDE`; `shares` of the rows with a side; what of a
    given split leaks; and `notes` a user should read (shares that could not be met, sides that stay empty)."""

    side: np.ndarray
    shares: dict[str, float]
    leakage: Leakage
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Belonging:
    """What the split needs to know of the rows, each `[N]`.

    `ids`: the record's id as uint64, the same for all pieces of a record; `cluster`: int64 labels of near-duplicates;
    `group`: uint64 hashes of the groups' names (`records.content_id`), 0 for none; `given`: int8 side that the source
    says, `NOT_GIVEN` for none.
    """

    ids: np.ndarray
    cluster: np.ndarray | None = None
    group: np.ndarray | None = None
    given: np.ndarray | None = None


def assign(rows: Belonging, spec: SplitSpec, origin_of: Callable[[int], str] = str) -> Split:
    """The side of each row by `hash` or as `given` (a split by position needs none of this: see `split_text`).

    A unit's side is a function of the hash of its representative: one of its groups' names where it has groups, one of
    its records' ids otherwise. Which one is drawn by another hash: the least of several hashes would be small, and
    large units nearly always be held out. So a speaker keeps its side as the corpus grows, and so does a record, unless
    what comes is near it and becomes the representative. Where groups leave at most `FEW_UNITS` units, hashes alone
    would often leave a side empty: the units are then ordered by hash and cut at the shares, each side getting at least
    one; as units come, the cuts move.

    Raises: CorpusError when the policy is `refuse` and a given split leaks, naming examples by `origin_of(row)`, or is
    `drop` and nothing would be left to train on.
    """
    assert spec.kind != "position"
    unit = _units(rows)
    position, few = _positions(rows, unit)
    choose = _cut if few else _by_position
    if spec.kind == "hash":
        side = choose(position, np.bincount(unit), spec.validation, spec.test)[unit]
        return _split(side, Leakage(), {"validation": spec.validation, "test": spec.test})
    given = np.full(len(unit), NOT_GIVEN, np.int8) if rows.given is None else rows.given
    side, furthest = _as_given(unit, given)
    leakage = _leakage(rows, unit, side)
    if leakage.units and spec.leakage == "refuse":
        raise CorpusError(_refusal(leakage, origin_of))
    if leakage.units and spec.leakage == "drop":
        behind = side < furthest[unit]
        side[behind] = NO_SIDE
        leakage = replace(leakage, dropped=int(behind.sum()))
        if not (side == TRAIN).any():
            raise CorpusError(_nothing_left(leakage, origin_of))
    if (given == VALIDATION).any():
        return _split(side, leakage, {})
    training = np.flatnonzero(furthest == TRAIN)
    chosen = np.zeros(len(furthest), np.uint8)
    chosen[training] = choose(position[training], np.bincount(unit)[training], spec.validation, 0.0)
    return _split(
        np.maximum(side, chosen[unit]),
        leakage,
        {"validation": spec.validation * float(np.sum(side == TRAIN)) / max(1, len(side))},
    )


def split_text(text: str, split: SplitSpec) -> dict[str, str]:
    """`text` cut by position: the first part trains, the next validates, the last tests."""
    trained = int((1 - split.validation - split.test) * len(text))
    validated = int((1 - split.test) * len(text))
    return {"train": text[:trained], "validation": text[trained:validated], "test": text[validated:]}


def assign_split(record_id: str, given: str | None, split: SplitSpec) -> str:
    """The side of one record that belongs with no other, from its id of 16 hexadecimal digits: as `assign` would."""
    position = int(record_id, 16) / 2**64
    if split.kind == "given":
        return given if given in ("test", "validation") else "validation" if position < split.validation else "train"
    if position < split.test:
        return "test"
    return "validation" if position < split.test + split.validation else "train"


def _units(rows: Belonging) -> np.ndarray:
    """The unit of each row, int64 `[N]` of 0, 1, …: connected over clusters, groups and records."""
    links = [_links_to_first(rows.ids)]
    if rows.cluster is not None:
        links.append(_links_to_first(rows.cluster))
    if rows.group is not None:
        named = np.flatnonzero(rows.group)
        links.append(named[_links_to_first(rows.group[named])])
    first = cluster(len(rows.ids), np.concatenate(links))
    number = np.cumsum(first == np.arange(len(first))) - 1
    return np.asarray(number[first], np.int64)


def _links_to_first(labels: np.ndarray) -> np.ndarray:
    """Each place that is not the first of its label, with the first, int64 `[any, 2]`."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    first = first[inverse]
    later = np.flatnonzero(first != np.arange(len(labels)))
    return np.stack([later, first[later]], axis=1)


def _positions(rows: Belonging, unit: np.ndarray) -> tuple[np.ndarray, bool]:
    """Where in [0, 1) the hash of each unit's representative lies, float64 `[units]`, and whether groups leave few."""
    group = np.zeros(len(unit), np.uint64) if rows.group is None else rows.group
    named = group > 0
    hashes = np.where(named, group, rows.ids)
    # Multiplying by an odd number permutes the hashes.
    order = np.lexsort((hashes * np.uint64(0x9E3779B97F4A7C15), ~named, unit))
    _, first = np.unique(unit[order], return_index=True)
    return hashes[order[first]] / 2.0**64, bool(named.any()) and len(first) <= FEW_UNITS


def _by_position(position: np.ndarray, sizes: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Sides of units by their hashes alone: the first part tests, the next validates."""
    held = np.where(position < test + validation, VALIDATION, TRAIN)
    return np.where(position < test, TEST, held).astype(np.uint8)


def _cut(position: np.ndarray, sizes: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Sides of few units: in the order of their hashes, by where the middle of each lies among all rows; each side that
    has a share gets a unit while one is left to train on, test first."""
    order = np.argsort(position, kind="stable")
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(1, sizes.sum())
    spare = max(0, len(order) - 1)
    tested = min(spare, max(int(np.sum(middle < test)), int(test > 0)))
    held = int(np.sum(middle < test + validation))
    validated = min(spare - tested, max(held - tested, int(validation > 0)))
    side = np.full(len(order), TRAIN, np.uint8)
    side[order[:tested]] = TEST
    side[order[tested : tested + validated]] = VALIDATION
    return side


def _as_given(unit: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The side that each row is given, training where nothing is said, and the furthest from training of each unit."""
    side = np.where(given == NOT_GIVEN, TRAIN, given).astype(np.uint8)
    furthest = np.zeros(int(unit.max(initial=-1)) + 1, np.uint8)
    np.maximum.at(furthest, unit, side)
    return side, furthest


def _leakage(rows: Belonging, unit: np.ndarray, side: np.ndarray) -> Leakage:
    units, within = _parted(unit, side)
    if not len(units):
        return Leakage()
    near = rows.ids if rows.cluster is None else _units(Belonging(rows.ids, rows.cluster))
    group = np.zeros(len(side), np.uint64) if rows.group is None else rows.group
    near_rows, near_examples = _pairs_of_sides(near, side, np.ones(len(side), bool))
    group_rows, group_examples = _pairs_of_sides(group, side, group > 0)
    return Leakage(
        units=len(units),
        rows={name: int(np.sum(side[within] == code)) for code, name in enumerate(SIDES)},
        near_rows=near_rows,
        group_rows=group_rows,
        examples=tuple((near_examples + group_examples)[:EXAMPLES]),
    )


def _parted(label: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels with rows on several sides, and which rows have one of them, bool `[N]`."""
    pairs = np.unique(np.stack([label, side.astype(label.dtype)]), axis=1)[0]
    labels, counts = np.unique(pairs, return_counts=True)
    parted = labels[counts > 1]
    return parted, np.isin(label, parted)


def _pairs_of_sides(
    label: np.ndarray, side: np.ndarray, counted: np.ndarray
) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """For each pair of sides, how many `counted` rows of the first share a label with one of the second; and examples,
    a row of each, one a label."""
    found: dict[str, int] = {}
    examples: list[tuple[int, int]] = []
    for ahead, behind in ((TEST, TRAIN), (TEST, VALIDATION), (VALIDATION, TRAIN)):
        first, second = (np.flatnonzero(counted & (side == code)) for code in (ahead, behind))
        shared = np.isin(label[first], label[second])
        found[f"{SIDES[ahead]}, {SIDES[behind]}"] = int(shared.sum())
        _, one_each = np.unique(label[first[shared]], return_index=True)
        for row in np.sort(first[shared][one_each])[:EXAMPLES].tolist():
            examples.append((row, int(second[np.argmax(label[second] == label[row])])))
    return found, examples


def _refusal(leakage: Leakage, origin_of: Callable[[int], str]) -> str:
    parts = [
        f"{count:,} {pair.replace(', ', ' records with ')} ones {how}"
        for how, counts in (("nearly the same", leakage.near_rows), ("of the same group", leakage.group_rows))
        for pair, count in counts.items()
        if count
    ]
    return (
        f"the given split leaks: {'; '.join(parts)}; {_examples(leakage, origin_of)}; let data.split.leakage be 'drop' "
        "(training goes without them) or 'report', or data.split.kind be 'hash'"
    )


def _nothing_left(leakage: Leakage, origin_of: Callable[[int], str]) -> str:
    return (
        f"data.split.leakage is 'drop', but all training records, {leakage.dropped:,} dropped, belong with test or "
        f"validation records, {_examples(leakage, origin_of)}; let data.split.leakage be 'report', or the source name "
        "no groups, or data.split.kind be 'hash'"
    )


def _examples(leakage: Leakage, origin_of: Callable[[int], str]) -> str:
    return "such as " + ", ".join(f"{origin_of(one)} and {origin_of(other)}" for one, other in leakage.examples[:3])


def _split(side: np.ndarray, leakage: Leakage, asked: dict[str, float]) -> Split:
    """The split, its shares, and what of the shares `asked` could not be met: a side that stayed empty, or is far from
    its share beyond chance."""
    counts = np.bincount(side[side != NO_SIDE], minlength=len(SIDES))
    total = max(1, int(counts.sum()))
    shares = dict(zip(SIDES, (counts / total).tolist(), strict=True))
    notes = []
    for name, share in asked.items():
        chance = 4 * math.sqrt(share * (1 - share) / total)
        if share and (shares[name] == 0 or abs(shares[name] - share) > max(MAX_SHARE_ERROR * share, chance)):
            notes.append(
                f"{name} has {shares[name]:.1%} of the records where {share:.1%} were asked for: near-duplicates and "
                "groups are not parted, and there are too few of them, or one is too large, to share them out better"
            )
    return Split(side, shares, leakage, tuple(notes))
