"""Records: what a corpus gives, and what all kinds of corpora share; none of them decodes pictures or sound.

The driver fingerprints a corpus and cuts it into units (JSON-able work items); Ray Data's workers read units.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

import numpy as np

from pipeline.data.layout import Modality
from pipeline.errors import CorpusError

Unit = dict[str, Any]
"""A work item: `files` ([name, digest] of all that it depends on), `bytes` (the size of its part of the source, about),
`count` (records, where that is known without reading), `guard` ([size, mtime in ns] of each file), and keys of its
kind."""

NOT_IDENTITY = frozenset({"bytes", "count", "guard"})

Known = Collection[tuple[str, str]]
"""(name, digest) of files that were read already."""


class Record(TypedDict):
    """One raw record.

    `id`: 16 hexadecimal digits of the sha256 of the content; `origin`: the path inside the corpus, with `#member` or
    `:line`; `payload`: a file's bytes, a text, or an array (uint8 pictures `[H, W]` or `[H, W, C]`, float32 sound `[T]`
    at `rate` hertz); `split` (`train`, `validation` or `test`) and `group`: where the source says so; `error`: why
    there is no payload; `prompt`: the text prompt that the source gives; `facts`: what was found out in reading, such
    as the `encoding`. Sorted by `name` (of the source's file) and `index` (in it), records are in the corpus's order.
    """

    id: str
    origin: str
    payload: bytes | str | np.ndarray
    label: str | None
    split: str | None
    rate: int | None
    error: str | None
    group: str | None
    prompt: str | None
    facts: dict[str, Any]
    name: str
    index: int


def make_record(
    origin: str,
    payload: bytes | str | np.ndarray,
    label: str | None = None,
    split: str | None = None,
    rate: int | None = None,
    error: str | None = None,
    group: str | None = None,
    prompt: str | None = None,
    facts: dict[str, Any] | None = None,
    name: str | None = None,
    index: int = 0,
) -> Record:
    return {
        "id": content_id(payload),
        "origin": origin,
        "payload": payload,
        "label": label,
        "split": split,
        "rate": rate,
        "error": error,
        "group": group,
        "prompt": prompt,
        "facts": dict(facts or {}),
        "name": origin if name is None else name,
        "index": index,
    }


def content_id(payload: bytes | str | np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of the content."""
    if isinstance(payload, str):
        payload = payload.encode("utf-8", errors="surrogatepass")
    elif isinstance(payload, np.ndarray):
        payload = payload.tobytes()
    return hashlib.sha256(payload).hexdigest()[:16]


@dataclass(frozen=True)
class SourceFile:
    """A file of a corpus as the fingerprint saw it.

    `digest`: the sha256 of its content or, behind a URI, of its size, time and ETag, so that nothing is downloaded
    only to be hashed. `marks`: (byte, line number) of the places where a big file may be cut, from (0, 1) to its end.
    """

    name: str
    size: int
    digest: str
    encoding: str | None = None
    marks: tuple[tuple[int, int], ...] = ()
    modified_ns: int = 0


@dataclass(frozen=True)
class Selection:
    """`limit` of `total` positions, evenly spaced."""

    limit: int
    total: int

    def __contains__(self, position: int) -> bool:
        i = -(-position * self.limit // self.total)
        return i < self.limit and i * self.total // self.limit == position


class Corpus(ABC):
    """A source of records of one modality.

    Subclasses `_scan` their files, list `_units`, yield the `_items` of a unit lazily and turn one into a `_record`.
    Every method raises CorpusError when the corpus is missing, empty, damaged, changing or of another kind.
    """

    single_document: bool = False

    def __init__(self, source: Any, modality: Modality) -> None:
        self.source, self.modality = source, modality
        self._files: list[SourceFile] | None = None
        self._fingerprint: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the files: a worker needs only what its unit says of them."""
        return {**self.__dict__, "_files": None}

    @property
    def licence(self) -> str:
        return self.source.licence or "not stated"

    @abstractmethod
    def _scan(self) -> list[SourceFile]:
        """The corpus's files as they are now."""

    @abstractmethod
    def _units(self, known: Known) -> Iterable[Unit]:
        """Units in order; those of whole files leave out what is `known`."""

    @abstractmethod
    def _items(self, unit: Unit) -> Iterator[Any]:
        """What `_record` takes, one for each record of the unit, in order."""

    @abstractmethod
    def _record(self, item: Any) -> Record: ...

    def files(self) -> list[SourceFile]:
        """The corpus's files, sorted by name; looked at once, when first asked for."""
        if self._files is None:
            self._files = sorted(self._scan(), key=lambda file: file.name)
        return self._files

    def fingerprint(self) -> str:
        """The sha256 over the names and digests of the corpus's files."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for file in self.files():
                digest.update(f"{file.name}\0{file.digest}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def units(self, limit: int | None = None, known: Known = frozenset()) -> list[Unit]:
        """Work items that together hold all records, or `limit` of them evenly spaced over the corpus.

        A unit of whole files is made of files that are not `known`, so that a corpus that grew gives units of what is
        new; units of a part of a file (a range of bytes or rows, row groups) or of a tar depend on it alone, and are
        the same ones again. Where a limit selects within files, what is known does not matter: it counts positions in
        the whole corpus.
        """
        units = list(self._units(frozenset() if limit is not None else known))
        if limit is None:
            return units
        counts = [unit["count"] if "count" in unit else sum(1 for _ in self._items(unit)) for unit in units]
        total = sum(counts)
        if limit >= total:
            return list(self._units(known))
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        return [
            {**unit, "selected": {"first": first, "limit": limit, "total": total}}
            for unit, first in zip(units, firsts, strict=True)
        ]

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of a unit, in order. A record that cannot be had carries its `error`.

        Raises: CorpusError, while reading, when a file of the unit is no longer what the fingerprint saw.
        """
        selected = unit.get("selected")
        if selected is None:
            yield from map(self._record, self._items(unit))
            return
        selection = Selection(selected["limit"], selected["total"])
        for position, item in enumerate(self._items(unit), selected["first"]):
            if position in selection:
                yield self._record(item)


def unit_identity(unit: Unit) -> dict[str, Any]:
    """What a unit's records follow from, with the source's spec: all its keys but `bytes`, `count` and `guard`."""
    return {key: value for key, value in unit.items() if key not in NOT_IDENTITY}


def wrong_modality(what: str, modality: Modality) -> NoReturn:
    raise CorpusError(f"{what}, and data.codec is for {modality}; change data.codec.kind or data.source")


def changed(name: str) -> CorpusError:
    return CorpusError(f"changed while it was being prepared: {name}; run it again")
