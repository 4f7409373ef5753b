"""The ledger of a retraining: one file an entry in the storage, each with the hash of the one before.

Written and read by the driver alone. An entry that was edited, and one that is gone, are found before anything is
done: every file holds its own hash and its predecessor's, and `head.json` says how far the ledger went.

    retrain/<name>/ledger/000001.json …   retrain/<name>/head.json
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import LedgerError, StorageError
from pipeline.storage import Store

FOLDER = "retrain"
ENTRIES = "ledger"
HEAD = "head.json"
FIRST = "0" * 64
"""What the first entry has for the hash of the one before."""

Entry = dict[str, Any]


class Ledger:
    """The entries of the retraining `name`, oldest first. Raises, when opened: LedgerError if they were edited."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store.child(FOLDER, name)
        self.entries = self._read()

    @property
    def path(self) -> str:
        """Where the newest entry is."""
        return self.store.path(ENTRIES, _file(len(self.entries)))

    def append(self, values: Mapping[str, Any]) -> Entry:
        """Write the next entry. Raises: LedgerError when another process wrote it first, StorageError."""
        number = len(self.entries) + 1
        previous = self.entries[-1]["sha256"] if self.entries else FIRST
        entry: Entry = {"number": number, "previous": previous, **values}
        entry["sha256"] = _hash(entry)
        self._create(_file(number), json.dumps(entry, indent=1, ensure_ascii=False).encode())
        self.entries.append(entry)
        self.store.write_json({"number": number, "sha256": entry["sha256"]}, HEAD)
        return entry

    def _create(self, file: str, data: bytes) -> None:
        """Write a file that is not there yet: whole, or not at all."""
        taken = LedgerError(
            f"{self.store.path(ENTRIES, file)}: another process has written this entry; one retraining of a name runs "
            "at a time, so look whether it still does and run the same command again"
        )
        if not self.store.is_local:
            if self.store.exists(ENTRIES, file):
                raise taken
            self.store.write_bytes(data, ENTRIES, file)
            return
        temporary = f"{file}.{os.getpid()}"
        self.store.write_bytes(data, "writing", temporary)
        source = self.store.local_path("writing", temporary)
        try:
            self.store.local_path(ENTRIES).mkdir(exist_ok=True)
            os.link(source, self.store.local_path(ENTRIES, file))
        except FileExistsError:
            raise taken from None
        except OSError as error:
            raise StorageError(f"{self.store.path(ENTRIES, file)}: cannot write it: {error}") from error
        finally:
            Path(source).unlink(missing_ok=True)

    def _read(self) -> list[Entry]:
        entries: list[Entry] = []
        previous = FIRST
        for number, file in enumerate(self.store.list_names(ENTRIES), start=1):
            where = self.store.path(ENTRIES, file)
            try:
                entry: Entry = json.loads(self.store.read_bytes(ENTRIES, file))
                intact = entry["sha256"] == _hash(entry) and entry["number"] == number and file == _file(number)
            except (ValueError, KeyError, TypeError):
                intact = False
            if not intact:
                raise self._edited(where, "the entry is not as it was written")
            if entry["previous"] != previous:
                raise self._edited(where, "it does not follow the entry before it")
            previous = entry["sha256"]
            entries.append(entry)
        if self.store.exists(HEAD):
            try:
                head = self.store.read_json(HEAD)
                number, sha256 = int(head["number"]), str(head["sha256"])
            except (StorageError, KeyError, TypeError, ValueError):
                raise self._edited(self.store.path(HEAD), "it does not say how far the ledger goes") from None
            # One entry more than the head says: the process ended between the two writes.
            if not 0 <= len(entries) - number <= 1 or (number and entries[number - 1]["sha256"] != sha256):
                raise self._edited(
                    self.store.path(ENTRIES), f"there are {len(entries)} entries, and {HEAD} says {number} (or others)"
                )
        elif len(entries) > 1:
            raise self._edited(self.store.path(HEAD), "it is gone")
        return entries

    def _edited(self, where: str, what: str) -> LedgerError:
        return LedgerError(
            f"{where}: {what}, so the ledger was edited or cut short and nothing is trained or moved; restore it from "
            f"a copy, or move {self.store.root} away to begin a new one"
        )


def _file(number: int) -> str:
    return f"{number:06d}.json"


def _hash(entry: Mapping[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
