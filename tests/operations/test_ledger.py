"""A ledger that says what happened: in order, once, and unedited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LedgerError
from pipeline.operations.ledger import Ledger
from pipeline.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def three_entries(store: Store) -> Path:
    ledger = Ledger(store, "nightly")
    for number in range(3):
        ledger.append({"kind": "decided", "gain": 0.1 * number, "interval": (0.0, 1.0)})
    return store.local_path("retrain", "nightly")


def test_entries_come_back_in_order_each_with_the_hash_of_the_one_before(store: Store) -> None:
    three_entries(store)
    entries = Ledger(store, "nightly").entries
    assert [entry["number"] for entry in entries] == [1, 2, 3]
    assert [entry["previous"] for entry in entries[1:]] == [entry["sha256"] for entry in entries[:-1]]


def edit(folder: Path, number: int) -> None:
    path = folder / "ledger" / f"00000{number}.json"
    path.write_text(path.read_text().replace('"decided"', '"held"'))


def forge(folder: Path, number: int) -> None:
    """Edit an entry and mend its own hash, as someone would who knows how."""
    from pipeline.operations.ledger import _hash

    path = folder / "ledger" / f"00000{number}.json"
    entry = json.loads(path.read_text()) | {"gain": 9.0}
    path.write_text(json.dumps(entry | {"sha256": _hash(entry)}))


def swap(folder: Path) -> None:
    one, two = folder / "ledger" / "000001.json", folder / "ledger" / "000002.json"
    first, second = one.read_text(), two.read_text()
    one.write_text(second)
    two.write_text(first)


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "an entry was edited": lambda folder: edit(folder, 2),
    "the last entry was edited": lambda folder: edit(folder, 3),
    "an entry and its hash were edited": lambda folder: forge(folder, 2),
    "the last entry and its hash were edited": lambda folder: forge(folder, 3),
    "the first was deleted": lambda folder: (folder / "ledger" / "000001.json").unlink(),
    "one in the middle was deleted": lambda folder: (folder / "ledger" / "000002.json").unlink(),
    "the last was deleted": lambda folder: (folder / "ledger" / "000003.json").unlink(),
    "two were swapped": swap,
    "one is no JSON": lambda folder: (folder / "ledger" / "000003.json").write_text("{"),
    "a stranger was added": lambda folder: (folder / "ledger" / "notes.txt").write_text("hello"),
    "the head is gone": lambda folder: (folder / "head.json").unlink(),
    "the head is no JSON": lambda folder: (folder / "head.json").write_text("{"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_an_edited_ledger_is_refused(store: Store, tampering: str) -> None:
    TAMPERINGS[tampering](three_entries(store))
    with pytest.raises(LedgerError, match="edited or cut short"):
        Ledger(store, "nightly")


def test_a_crash_between_the_entry_and_the_head_is_no_edit(store: Store) -> None:
    folder = three_entries(store)
    head = (folder / "head.json").read_text()
    Ledger(store, "nightly").append({"kind": "unchanged"})
    (folder / "head.json").write_text(head)
    assert len(Ledger(store, "nightly").entries) == 4


def test_of_two_processes_that_write_the_next_entry_one_is_refused(store: Store) -> None:
    one, two = Ledger(store, "nightly"), Ledger(store, "nightly")
    one.append({"kind": "begun"})
    with pytest.raises(LedgerError, match="another process has written this entry"):
        two.append({"kind": "begun"})
    assert len(Ledger(store, "nightly").entries) == 1
