"""The catalogue of parts: which of a corpus's units were read already, which are missing, and what a part stands for.

Pure bookkeeping on the driver. A unit of whole files is any group of them, so that a file counts as read when some part
has it; every other unit (a range of a file) has a part of its own name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.parts import Part, find_parts, part_entry, part_name, part_of
from pipeline.data.records import Corpus, Unit, unit_identity
from pipeline.storage import Store


@dataclass
class Catalogue:
    """What the folder `store` holds of `corpus`, of which `limit` records are wanted (None: all)."""

    store: Store
    corpus: Corpus
    limit: int | None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = {file.name: file.digest for file in self.corpus.files()}

    def add(self, name: str, rows: int) -> None:
        """A part of one of the `missing` units was written: what it says of itself need not be read again."""
        self.entries[name] = part_entry(self.units[name], rows)

    def missing(self) -> list[Unit]:
        """The units that no part has."""
        self._look()
        return [unit for name, unit in self.units.items() if name not in self.entries]

    def parts(self) -> list[Part]:
        """The parts that hold the corpus, once nothing is missing. Their order is that of their names."""
        self._look()
        by_files = {name for name, entry in self.entries.items() if entry["whole_files"] and self._knows(entry)}
        names = sorted(by_files | self.units.keys())
        return [part_of(self.store, name, self.entries[name]) for name in names if name in self.entries]

    def ranks(self, parts: list[Part]) -> list[np.ndarray]:
        """For each part, for each of its files the rank among the corpus's, or -1 where it is gone, has changed or is
        in an earlier part; int64."""
        rank = {name: place for place, name in enumerate(sorted(self.files))}
        owner: dict[str, int] = {}
        found = []
        for place, part in enumerate(parts):
            mine = [
                self.files.get(name) == digest and (not part.whole_files or owner.setdefault(name, place) == place)
                for name, digest in part.files
            ]
            pairs = zip(part.files, mine, strict=True)
            found.append(np.array([rank[name] if own else -1 for (name, _), own in pairs], np.int64))
        return found

    def _look(self) -> None:
        self.entries = find_parts(self.store, self.entries)
        known: set[tuple[str, str]] = set()
        if self.limit is None:
            whole = (entry for entry in self.entries.values() if entry["whole_files"])
            known = {(name, digest) for entry in whole for name, digest in entry["files"]}
        units = self.corpus.units(self.limit, frozenset(known))
        self.units = {part_name(unit_identity(unit)): unit for unit in units}

    def _knows(self, entry: dict[str, object]) -> bool:
        """Whether a part of whole files has one of the corpus's as it is now."""
        files = entry["files"]
        assert isinstance(files, list)
        return self.limit is None and any(self.files.get(name) == digest for name, digest in files)
