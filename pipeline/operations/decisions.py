"""What a retraining decides by: how far the corpus has moved from the champion's data, and whether that is enough.

Runs in the driver, without Ray: the corpus is fingerprinted, and its records are hashed only when that differs.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.data.codec import CODECS
from pipeline.data.corpus import open_corpus
from pipeline.data.manifest import prepared_key
from pipeline.data.prepared import Prepared, Records, find_prepared
from pipeline.data.records import Corpus
from pipeline.operations.ledger import Entry
from pipeline.operations.schedule_file import Retraining
from pipeline.release.champion import Champion
from pipeline.spec import RunSpec
from pipeline.storage import Store

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Change:
    """How the corpus differs from the one that the champion was trained on.

    `share` of the `records` there are now is `new` (or changed); `gone` were there and are not. `basis` says by what
    that is known: `fingerprint` (nothing differs), `records`, or `counts` where the champion's set does not say which
    records it had, or is not in the storage.
    """

    basis: str
    share: float
    new: int
    records: int
    gone: int

    def words(self) -> str:
        if self.basis == "fingerprint":
            return "no record is new: the corpus is the one that the champion was trained on"
        known = (
            "" if self.basis == "records" else " at least, by their number (which records the champion had is unknown)"
        )
        gone = f", {self.gone:,} are gone" if self.gone else ""
        return f"{self.new:,} of {self.records:,} records ({self.share:.1%}) are new or changed{known}{gone}"


@dataclass(frozen=True)
class Plan:
    """Whether a challenger is trained, and why; on which prepared set, against which champion."""

    train: bool
    reason: str
    prepared: str
    champion: Champion | None
    change: Change | None

    def figures(self) -> dict[str, Any]:
        return {
            "prepared": self.prepared,
            "champion": self.champion.version if self.champion else None,
            "champion_prepared": self.champion.prepared if self.champion else None,
            "change": asdict(self.change) if self.change else None,
        }


def open_base_corpus(spec: RunSpec) -> Corpus:
    """The corpus of a spec. Raises: CorpusError."""
    return open_corpus(spec.data.source, CODECS[spec.data.codec.kind](spec.data.codec).modality)


def make_plan(retraining: Retraining, store: Store, champion: Champion | None, entries: list[Entry]) -> Plan:
    """Look at the corpus, the champion and what was tried. Raises: CorpusError, PreparedDataError, StorageError."""
    corpus = open_base_corpus(retraining.base)
    key = prepared_key(retraining.base, corpus)
    if champion is None:
        reason = f"there is no champion of {retraining.model!r} yet"
        tried = already_decided(entries, key, None, identity(retraining))
        if tried is not None and tried["decision"] in ("held", "rejected"):
            return Plan(False, f"{reason}, and {_already(tried)}", key, None, None)
        return Plan(True, reason, key, None, None)
    change = find_change(retraining.base, store, corpus, key, champion)
    trigger = retraining.spec.trigger
    age_days = (time.time() - champion.created_at) / SECONDS_A_DAY
    old = trigger.max_age_days is not None and age_days >= trigger.max_age_days
    much = change.share >= trigger.min_new_share
    aged = f"the champion is {age_days:.1f} days old"
    if not (much or old):
        limits = f"a training wants {trigger.min_new_share:.1%}"
        limits += "" if trigger.max_age_days is None else f", or a champion of {trigger.max_age_days:g} days ({aged})"
        return Plan(False, f"{change.words()}; {limits}", key, champion, change)
    tried = already_decided(entries, key, champion, identity(retraining))
    if tried is not None:
        return Plan(
            False,
            f"{change.words()}, and {_already(tried)}",
            key,
            champion,
            change,
        )
    reasons = [change.words()] * much + [f"{aged}, at least {trigger.max_age_days or 0:g}"] * old
    return Plan(True, ", and ".join(reasons), key, champion, change)


def identity(retraining: Retraining) -> dict[str, Any]:
    """What makes a challenger of the same data and champion another one: the spec and how it begins.

    The data is known by its prepared set's key, wherever the corpus lies.
    """
    from pipeline.workflow import NOT_IDENTITY

    spec = retraining.base.model_dump(mode="json", exclude={**NOT_IDENTITY, "data": True})
    return {"spec": spec, "warm_start": retraining.spec.warm_start}


def already_decided(
    entries: list[Entry], prepared: str, champion: Champion | None, wanted: dict[str, Any]
) -> Entry | None:
    """The decision on a challenger of this data and spec against this champion (or none), if there was one."""
    version = champion.version if champion else None
    for entry in reversed(entries):
        same = entry.get("prepared") == prepared and entry.get("champion") == version
        if entry["kind"] == "decided" and same and entry.get("identity") == wanted:
            return entry
    return None


def _already(entry: Entry) -> str:
    return f"entry {entry['number']} has already decided on a challenger trained on it: {entry['decision']}"


def find_change(spec: RunSpec, store: Store, corpus: Corpus, key: str, champion: Champion) -> Change:
    """How the corpus differs from the champion's, read as far as it must be."""
    before = find_prepared(store, champion.prepared) if champion.prepared else None
    if before is not None and (before.key == key or before.manifest.corpus["fingerprint"] == corpus.fingerprint()):
        return Change("fingerprint", 0.0, 0, int(before.manifest.report.get("read", 0)), 0)
    now = record_ids(corpus, spec.data.limit)
    kept = before.load_records() if before is not None else None
    if kept is None:
        count = int(before.manifest.report.get("read", 0)) if before is not None else 0
        more = max(0, len(now) - count)
        return Change("counts", more / max(1, len(now)), more, len(now), max(0, count - len(now)))
    known = np.unique(kept.record)
    new = int((~np.isin(now, known, assume_unique=True)).sum())
    gone = int((~np.isin(known, now, assume_unique=True)).sum())
    return Change("records", new / max(1, len(now)), new, len(now), gone)


def record_ids(corpus: Corpus, limit: int | None) -> np.ndarray:
    """The identifiers of all records, or of those that `limit` selects, sorted uint64 `[N]`; decodes none of them."""
    ids = [int(record["id"], 16) for unit in corpus.units(limit) for record in corpus.read(unit)]
    return np.unique(np.array(ids, np.uint64))


@dataclass(frozen=True)
class HeldOut:
    """Whether the champion was trained on records that it is now scored on: how many of `records`; None: unknown."""

    records: int
    trained_on: int | None
    note: str


def held_out(prepared: Prepared, before: Prepared | None) -> HeldOut:
    """Check the new test split against the training split of the champion's prepared set, record by record."""
    now = prepared.load_records()
    count = int(prepared.manifest.splits["test"]["records"])
    if before is None:
        return HeldOut(count, None, "unknown: the champion's prepared set is not in the storage")
    then = before.load_records()
    if now is None or then is None:
        return HeldOut(count, None, "unknown: a prepared set from before records were kept")
    if "position" in (prepared.manifest.split.get("kind"), before.manifest.split.get("kind")):
        return HeldOut(count, None, "not checked: texts that are split by position keep their side if they only grow")
    overlap = trained_on_test(now, then)
    note = "neither model was trained on any of them"
    if overlap:
        note = "the champion was trained on some of them, which favours it (the split was changed)"
    return HeldOut(count, overlap, note)


def trained_on_test(now: Records, then: Records) -> int:
    """Records of the test split now that were in the training split then."""
    return int(np.isin(np.unique(now.on("test")), then.on("train")).sum())
