"""Records: what a corpus gives, and what all kinds of corpora share; none of them decodes anything.

Used by `corpus`, on the driver (fingerprint, units) and in Ray Data's workers (reading).
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import hashlib
import lzma
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, TypedDict, cast

import numpy as np

from pipeline.data.layout import Modality
from pipeline.errors import CorpusError

CUT_SHORT = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What the standard library raises on a compressed file that is damaged or cut short."""

Unit = dict[str, Any]


class Record(TypedDict):
    """One raw record.

    `id`: 16 hexadecimal digits of the sha256 of the content; `origin`: the path inside the corpus, with `#member`
    or `:line`; `payload`: a file's bytes, a text, or an array (uint8 pictures `[H, W]` or `[H, W, C]`, float32 sound
    `[T]` at `rate` hertz); `split`: where the source says so; `error`: why there is no payload.
    """

    id: str
    origin: str
    payload: bytes | str | np.ndarray
    label: str | None
    split: str | None
    rate: int | None
    error: str | None


def make_record(
    origin: str,
    payload: bytes | str | np.ndarray,
    label: str | None = None,
    split: str | None = None,
    rate: int | None = None,
    error: str | None = None,
) -> Record:
    return {
        "id": content_id(payload),
        "origin": origin,
        "payload": payload,
        "label": label,
        "split": split,
        "rate": rate,
        "error": error,
    }


def content_id(payload: bytes | str | np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of the content."""
    if isinstance(payload, str):
        payload = payload.encode("utf-8", errors="surrogatepass")
    elif isinstance(payload, np.ndarray):
        payload = payload.tobytes()
    return hashlib.sha256(payload).hexdigest()[:16]


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

    Subclasses list `_units`, yield the `_items` of a unit lazily and turn one into a `_record`. Every method raises
    CorpusError when the corpus is missing, empty, damaged or of another kind.
    """

    single_document: bool = False

    def __init__(self, source: Any, modality: Modality) -> None:
        self.source, self.modality = source, modality

    @property
    def licence(self) -> str:
        return self.source.licence or "not stated"

    @abstractmethod
    def fingerprint(self) -> str:
        """The sha256 over the corpus's relative names, sizes and contents."""

    @abstractmethod
    def _units(self) -> Iterable[Unit]:
        """Units in order, with the `count` of their records where that is known without reading them."""

    @abstractmethod
    def _items(self, unit: Unit) -> Iterator[Any]:
        """What `_record` takes, one for each record of the unit, in order."""

    @abstractmethod
    def _record(self, item: Any) -> Record: ...

    def units(self, limit: int | None = None) -> list[Unit]:
        """Work items that together hold all records, or `limit` of them evenly spaced over the corpus."""
        units = list(self._units())
        if limit is None:
            return units
        counts = [unit["count"] if "count" in unit else sum(1 for _ in self._items(unit)) for unit in units]
        total = sum(counts)
        if limit >= total:
            return units
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        return [
            {**unit, "selected": {"first": first, "limit": limit, "total": total}}
            for unit, first in zip(units, firsts, strict=True)
        ]

    def read(self, unit: Unit) -> Iterator[Record]:
        """The records of a unit, in order. A record that cannot be had carries its `error`."""
        selected = unit.get("selected")
        if selected is None:
            yield from map(self._record, self._items(unit))
            return
        selection = Selection(selected["limit"], selected["total"])
        for position, item in enumerate(self._items(unit), selected["first"]):
            if position in selection:
                yield self._record(item)


class PathCorpus(Corpus):
    """A corpus at a path: one file, or a folder of files with one of `suffixes`."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[Modality, ...]] = ()

    def __init__(self, source: Any, modality: Modality) -> None:
        super().__init__(source, modality)
        self.root = Path(source.path).expanduser().absolute()
        if not self.root.exists():
            raise CorpusError(f"data.source.path {source.path!r}: there is no such file or folder{_nearby(self.root)}")
        if self.modalities and modality not in self.modalities:
            wrong_modality(f"data.source.kind {source.kind!r} holds {' or '.join(self.modalities)}", modality)

    def names(self) -> list[str]:
        """Files of the corpus, relative to its folder, sorted; a single file under its own name."""
        if self.root.is_file():
            return [self.root.name]
        names = [name for name in walk_names(self.root) if name.lower().endswith(self.suffixes)]
        if not names:
            raise CorpusError(f"{self.root}: no file in this folder ends with {', '.join(self.suffixes)}")
        return names

    def path_of(self, name: str) -> Path:
        return self.root if self.root.is_file() else self.root / name

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.names():
            path = self.path_of(name)
            try:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{name}\0{path.stat().st_size}\0{content}\n".encode(errors="surrogateescape"))
            except OSError as error:
                raise CorpusError(f"{path}: cannot be read: {error}") from None
        return digest.hexdigest()


class open_unpacked:
    """A file opened for reading bytes, unpacked by its suffix; damage becomes a CorpusError, also while reading."""

    openers: ClassVar[dict[str, Callable[..., Any]]] = {
        **dict.fromkeys((".gz", ".tgz"), gzip.open),
        **dict.fromkeys((".xz", ".txz"), lzma.open),
        **dict.fromkeys((".bz2", ".tbz2"), bz2.open),
    }

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> BinaryIO:
        try:
            self.file = cast(BinaryIO, self.openers.get(self.path.suffix.lower(), open)(self.path, "rb"))
        except OSError as error:
            raise CorpusError(f"{self.path}: cannot be read: {error}") from None
        return self.file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, CUT_SHORT):
            raise CorpusError(f"{self.path}: damaged or cut short ({error}); fetch it again") from None


def walk_names(root: Path) -> list[str]:
    """All files below `root`, relative, with forward slashes, sorted."""
    paths = (Path(folder, file) for folder, _, files in os.walk(root) for file in files)
    return sorted(name for path in paths if not is_hidden(name := path.relative_to(root).as_posix()))


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _nearby(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def wrong_modality(what: str, modality: Modality) -> NoReturn:
    raise CorpusError(f"{what}, and data.codec is for {modality}; change data.codec.kind or data.source")
